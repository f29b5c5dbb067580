#!/usr/bin/env bash
# Evaluate on several GPUs (or CPU processes): bash dist_test.sh CONFIG [GPUS] [any eval.py argument]
set -euo pipefail
if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    echo "usage: bash dist_test.sh CONFIG [GPUS] [any eval.py argument]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# -gt 0 ] && [[ $1 != -* || $1 =~ ^-[0-9] ]]; then
    if ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
        echo "error: GPUS must be a number of 1 or more, not '$1'" >&2
        exit 2
    fi
    processes=$1
    shift
else
    processes=$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')
fi
# The cores are shared out, where the user has not done it; torchrun would give each process one, with a warning.
cores=$("$python" -c 'import os; print(os.cpu_count())')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
export OPENCV_FOR_THREADS_NUM=${OPENCV_FOR_THREADS_NUM:-$OMP_NUM_THREADS}
exec "$python" -c '
import sys
sys.path.insert(0, sys.argv[1])
from clearclip.cli.launcher import main
main(sys.argv[1] + "/eval.py", sys.argv[2], sys.argv[3:])
' "$here" "$processes" "$config" "$@"

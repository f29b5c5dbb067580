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
# torchrun, but a process that ends with an error message of its own gets no report on top of it.
torchrun='
import logging
import os
import sys
sys.argv[0] = sys.argv[4]  # eval.py, as the usage message calls it
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from clearclip.cli.eval import check_arguments
check_arguments(sys.argv[5:])  # a wrong flag or config is said once, not by every process
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
logging.disable()
try:
    main()
except ChildFailedError as error:
    sys.exit(2 if any(failure.exitcode == 2 for failure in error.failures.values()) else str(error))
except (KeyboardInterrupt, SignalException):
    sys.exit(130)
'
# --standalone takes a free port, so that two evaluations fit on one machine.
exec "$python" -c "$torchrun" --standalone --nproc_per_node "$processes" \
    "$here/eval.py" "$config" "$@" --launcher pytorch

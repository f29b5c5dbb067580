#!/usr/bin/env bash
# Evaluate on several GPUs (or CPU processes): bash dist_test.sh CONFIG [GPUS] [any eval.py argument]
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: bash dist_test.sh CONFIG [GPUS] [any eval.py argument]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    processes=$1
    shift
else
    processes=$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')
fi
# A free port each, so that two evaluations fit on one machine.
exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" \
    "$here/eval.py" "$config" "$@" --launcher pytorch

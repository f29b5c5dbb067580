"""What dist_test.sh runs: torchrun, but a process that ends with an error message gets no report on top of it."""

import logging
import signal
import sys
from typing import Any

from clearclip.cli.eval import check_arguments
from clearclip.evaluation.ranks import KEPT


def explain(failure: Any, processes: int) -> int:
    """Say how a process ended that torchrun calls failed, unless it did so itself. Returns the status to end with."""
    status = failure.exitcode
    if status in (2, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        return status
    how = f"ended with status {status}"
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    if -status == signal.SIGKILL:
        how += ", as a system does whose memory is full"
    print(f"error: process {failure.local_rank + 1} of {processes} {how}: {KEPT}", file=sys.stderr)
    return 2


def main(script: str, processes: str, arguments: list[str]) -> None:
    """Run `script` in so many processes on this machine, on a free port, so that two evaluations fit on it."""
    sys.argv[0] = script  # as the usage message calls it
    check_arguments(arguments)  # a wrong flag or config is said once, not by every process
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable()
    try:
        torchrun(["--standalone", "--nproc_per_node", processes, script, *arguments, "--launcher", "pytorch"])
    except ChildFailedError as error:
        sys.exit(explain(error.get_first_failure()[1], int(processes)))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except KeyboardInterrupt:
        sys.exit(130)

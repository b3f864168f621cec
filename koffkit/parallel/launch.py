"""Starting a command in several processes: a thin call of torch's launcher, which `accelerate launch` calls
too."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from ..errors import PeerLost
from .place import OWN

NO_SIGNAL = "an unknown signal"


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `koffkit ARGUMENTS` in several processes on this machine, and wait for them.

    Args:
        num_processes: how many.
        arguments: of the command line, the name of the command first.

    Returns:
        The exit code of the process that failed first, 130 if the user interrupted them, or 0.

    Raises:
        PeerLost: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    os.environ[OWN] = "1"
    logging.disable(logging.CRITICAL)  # the launcher's, which would repeat what is said below
    settings = ["--standalone", f"--nproc-per-node={num_processes}", "--module", "koffkit"]
    try:
        run(parse_args([*settings, *arguments]))  # type: ignore[no-untyped-call]
    except SignalException:
        return 130
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise PeerLost(_killed(rank, num_processes, -failure.exitcode)) from None
        return int(failure.exitcode)
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[OWN]
    return 0


def _killed(rank: int, num_processes: int, number: int) -> str:
    known = {int(known): known.name for known in signal.Signals}
    return (
        f"process {rank} of {num_processes} was killed by {known.get(number, NO_SIGNAL)} (out of memory?), "
        "and the others ended with it; continue with the same command and --resume, with as many processes "
        "as you like."
    )

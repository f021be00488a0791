"""One process of a job that `llmlab run` started: `python -m llmlab.cli.rank LAUNCHER run CONFIG ...`, where
LAUNCHER is the launcher's process id.

It does what `python -m llmlab` does, but leaves what went wrong to be said once, by the program that started
it, and ends with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from llmlab.errors import LabError, ProcessLost
from llmlab.launching.rank_files import RankFiles
from llmlab.readable import make_readable

PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


def main() -> None:
    """Runs the command of the arguments."""
    make_readable()
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what connections say when the other side ends
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    end_with_the_launcher(int(sys.argv.pop(1)))
    files = RankFiles.of_this_process()
    files.dump_stacks_when_asked()
    from llmlab.cli import command_line

    code, message, because = 1, "", ""
    try:
        code = command_line()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except LabError as error:
        code, message = error.exit_code, str(error)
        if isinstance(error, ProcessLost):
            message, because = error.what, "late" if error.late else "lost"
    except KeyboardInterrupt:
        code = 130
    files.note_exit(code, message, because=because)
    # what was stopped on purpose has done its work: torchrun must not start it again
    sys.exit(0 if code > 128 else code)


def end_with_the_launcher(launcher: int) -> None:
    """Asks the kernel for SIGTERM when the launcher dies, even by SIGKILL: a process that trained on would
    hold the run's folder. Only Linux knows this.

    Args:
        launcher: its process id; by the time that Python has started it may be dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:
            sys.exit(143)


if __name__ == "__main__":
    main()

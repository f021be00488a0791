"""The program: `llmlab`, `python -m llmlab` and `python llmlab_cli.py` are the same."""

from __future__ import annotations

import os
import sys

from llmlab.errors import LabError
from llmlab.readable import make_readable, visible
from llmlab.trust import redact


def main() -> None:
    """Runs the command line; a person's error is one message and its exit code, never a traceback."""
    make_readable()
    os.environ.setdefault(
        "TQDM_DISABLE", "1"
    )  # the libraries read it when they are imported; the dashboard shows progress
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what connections say when the other side ends
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the hub client's retries; what came of them is said
    try:
        if (
            len(sys.argv) == 1 and sys.stdin.isatty() and sys.stdout.isatty()
        ):  # the menu does not wait for all the commands
            from llmlab.ui.menu import main_menu

            main_menu()
        else:
            from llmlab.cli import command_line

            sys.exit(command_line())
    except LabError as error:
        for line in redact(str(error)).splitlines():
            print(f"error: {visible(line)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()

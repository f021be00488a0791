"""Keys during a run: e validates now, p saves and pauses, s stops after this update. At a terminal only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.training.callbacks.stop import StopOnSignal
from llmlab.training.engine.reporter import Reporter

KEYS = {
    "e": "validate now",
    "p": "save and pause; again: go on",
    "s": "stop after this update, saved",
    "Ctrl+C": "save and stop at once; twice: stop without saving",
}
POLL = 0.2  # seconds


class Keys(TrainerCallback):
    """Reads single keys beside the training, and does what they ask for at the end of an update.

    Args:
        stop: of the run; a stop by key is a stop like any other.
        reporter: told what is going on.
        validates: whether there is anything to validate on.
    """

    def __init__(self, stop: StopOnSignal, reporter: Reporter, *, validates: bool):
        self.stop, self.reporter, self.validates = stop, reporter, validates
        self.asked: set[str] = set()
        self._open = True
        self._before: Any = None

    @staticmethod
    def there() -> bool:
        """Returns whether keys can be read: both ends are a terminal, and the run is in its foreground."""
        try:
            return (
                sys.stdin.isatty()
                and sys.stderr.isatty()
                and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
            )
        except (OSError, AttributeError, ValueError):
            return False

    def __enter__(self) -> Keys:
        with contextlib.suppress(ImportError, OSError):  # no such terminal here: no keys, no harm
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        if self._before is not None:
            import termios

            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _listen(self) -> None:
        while self._open:
            with contextlib.suppress(OSError, ValueError):
                if select.select([sys.stdin], [], [], POLL)[0]:
                    self.press(os.read(sys.stdin.fileno(), 1).decode(errors="ignore"))

    def press(self, key: str) -> None:
        """Takes a key."""
        if key == "e" and not self.validates:
            self.reporter.status("there are no held-out rows to validate on")
        elif key in ("e", "s"):
            self.asked.add(key)
            self.reporter.status(
                "validating after this update" if key == "e" else "stopping after this update"
            )
        elif key == "p":
            self.asked ^= {"p"}
            self.reporter.status("pausing after this update" if "p" in self.asked else "")
        else:
            self.reporter.pressed(key)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Asks the trainer for what the keys asked for."""
        if "e" in self.asked:
            self.asked.discard("e")
            control.should_evaluate = True
            self.reporter.status("")
        if "s" in self.asked and not self.stop.received:
            self.stop.received = signal.SIGINT
            control.should_save = control.should_training_stop = True
        if "p" in self.asked:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Waits where a pause was asked for: the checkpoint is complete."""
        if "p" not in self.asked:
            return
        self.reporter.status(f"paused at step {state.global_step:,}, saved · p continues · Ctrl+C stops")
        while "p" in self.asked and not self.stop.received:
            time.sleep(POLL)
        self.reporter.status("")

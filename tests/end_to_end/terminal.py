"""A person at a real terminal: keys go in, the screen is read as it stands."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pexpect
import psutil
import pyte

from tests.waiting import PATIENCE

ENTER, UP, DOWN, ESCAPE, CTRL_C, CTRL_D, CLEAR = "\r", "\x1b[A", "\x1b[B", "\x1b", "\x03", "\x04", "\x15"
QUIET = 0.05  # seconds without output after which a screen counts as drawn, if the program waits
SETTLED = 10.0  # seconds after which a program that still works is left to its work


class Terminal:
    """A program in a terminal of its own.

    Args:
        arguments: of `llmlab`; none opens the menu.
        folder: it runs in.
        columns: of the terminal.
        rows: of the terminal.
        environment: of the program.
    """

    def __init__(
        self, *arguments: str, folder: Path, columns: int = 80, rows: int = 24, environment: dict[str, str]
    ):
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "llmlab", *arguments],
            cwd=str(folder),
            dimensions=(rows, columns),
            encoding="utf-8",
            env={**environment, "TERM": "xterm-256color"},
            timeout=PATIENCE,
        )
        self.child.delaybeforesend = None  # pexpect would wait 50 ms with every key
        self.screen = pyte.Screen(columns, rows)
        self.screen.write_process_input = self.child.send  # where the cursor is, when a program asks
        self.stream = pyte.Stream(self.screen)

    def read(self, quiet: float = QUIET) -> str:
        """Takes in what comes until nothing comes for a while; returns the screen."""
        while True:
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=quiet))
            except pexpect.TIMEOUT:
                break
            except pexpect.EOF:
                break
        return self.text()

    def text(self) -> str:
        """Returns the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def send(self, *keys: str) -> str:
        """Presses keys, one after the other, and returns the screen."""
        for key in keys:
            self.child.send(key)
            self.settle()
        return self.text()

    def settle(self) -> None:
        """Takes in what comes until the program waits for keys: quiet alone says nothing on a busy machine.

        A program that goes on working (a training) is left after a while.
        """
        began = time.monotonic()
        while self.read() and self.is_working() and time.monotonic() - began < SETTLED:
            pass

    def is_working(self) -> bool:
        """Returns whether the program, or one that it started, runs or waits for the processor or a disk."""
        try:
            program = psutil.Process(self.child.pid)
            states = [process.status() for process in (program, *program.children(recursive=True))]
        except psutil.Error:
            return False
        return any(state in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP) for state in states)

    def choose(self, name: str) -> None:
        """Goes down a list to the entry that begins so, and takes it."""
        for _ in range(20):
            if re.search(rf"» {re.escape(name)}", self.text()):
                break
            self.send(DOWN)
        self.send(ENTER)

    def see(self, pattern: str) -> str:
        """Waits until the screen shows a pattern, and returns the screen."""
        began = time.monotonic()
        while not re.search(pattern, self.read()):
            assert time.monotonic() - began < PATIENCE, f"{pattern!r} did not come:\n{self.text()}"
            assert self.child.isalive() or re.search(pattern, self.read()), (
                f"ended before {pattern!r}:\n{self.text()}"
            )
        return self.text()

    def question(self) -> str:
        """Returns what is asked for at the bottom of the screen."""
        asked = re.findall(r"^\? (\S+)", self.text(), re.MULTILINE)
        return asked[-1] if asked else ""

    def fill(self, values: dict[str, str], until: str = "What") -> None:
        """Answers a form, values where they are given, else what is offered,
        until a question that begins with a word.
        """
        left = dict(values)  # each once: a list asks for line after line by one name
        for _ in range(200):
            name = self.question()
            if name == until:
                return
            typed = left.pop(name, None)
            if typed is None:
                self.send(ENTER)
            else:
                self.send(CLEAR, typed, ENTER)
        raise AssertionError(f"no end of the form:\n{self.text()}")

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size of the window."""
        self.child.setwinsize(rows, columns)
        self.screen.resize(rows, columns)
        self.read()

    def close(self) -> None:
        """Ends the program."""
        self.child.close(force=True)

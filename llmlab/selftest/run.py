"""The selftest as a whole: which checks, in which processes, and what is kept of it. No torch."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmlab.device_store import keep_selftest, kept_selftest
from llmlab.errors import LabError
from llmlab.selftest.rows import CHECKS, Check, Machine, Row
from llmlab.selftest.worker import Request, died

START = 180  # seconds that a process may take to load the libraries
GRACE = 20  # seconds that a part may take beyond its limit, until the process is ended from here


@dataclass
class Selftest:
    """What a selftest found.

    Attributes:
        machine: where it ran.
        rows: in their order.
        at: seconds since the epoch, when it began.
        seconds: that it took.
        quick: whether it took the smallest sizes.
        file: where it is kept; None where it is not.
    """

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    at: float = 0.0
    seconds: float = 0.0
    quick: bool = False
    file: Path | None = None

    @property
    def failed(self) -> list[Row]:
        """Rows that say that something is wrong."""
        return [row for row in self.rows if row.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        """Returns it as it is printed and kept."""
        return {
            "machine": asdict(self.machine),
            "at": self.at,
            "seconds": round(self.seconds, 1),
            "quick": self.quick,
            "failed": len(self.failed),
            "rows": [asdict(row) for row in self.rows],
        }


def chosen(only: Sequence[str]) -> dict[str, Check]:
    """Returns the checks of some names in their order; all of them for none.

    Raises:
        LabError: when a name is not known.
    """
    for name in only:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(CHECKS)}"
            raise LabError(f"there is no check {name!r}", where="`--only`", remedy=remedy)
    return {name: check for name, check in CHECKS.items() if not only or name in only}


class Worker:
    """A process that does checks.

    Args:
        device: as a person names it.
        cache: folder in place of the lab's cache; None for that one.

    Attributes:
        machine: where it computes.
        forks: whether it does each part in a process of its own.
    """

    def __init__(self, device: str, cache: Path | None = None):
        environment = dict(os.environ)
        if device == "cpu":  # whatever asks for a GPU finds none
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if cache is not None:
            environment["LLMLAB_CACHE"] = str(cache)
        command = [sys.executable, "-m", "llmlab.selftest.worker", device]
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - until it ends
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            told = self._next(START)
            if told is None:
                raise LabError(f"the selftest did not start ({self.last_words()})", exit_code=1)
            if "error" in told:
                raise LabError(**told["error"])
        except BaseException:
            self.end()
            raise
        self.machine, self.forks = Machine(**told["machine"]), bool(told["forks"])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """Returns what it says next; None where it has ended or says nothing for so long."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        return dict(json.loads(line)) if line else None

    def rows(self, request: Request) -> Iterator[Row]:
        """Yields the rows of a part; a process that ends without a word is a row that failed."""
        began = time.perf_counter()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asdict(request)) + "\n")
            self.process.stdin.flush()
        while told := self._next(max(0.0, began + request.limit + GRACE - time.perf_counter())):
            if "over" in told:
                return
            yield Row.of(told["row"])
        seconds = time.perf_counter() - began
        if self.process.poll() is None:
            self.end()
            yield Row(
                request.name,
                "failed",
                f"did not end within {request.limit} s",
                "",
                {},
                seconds,
                request.check,
            )
        else:
            yield died(request, self.process.wait(), seconds)

    @property
    def alive(self) -> bool:
        """Whether it can be asked more."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """Returns the last line that it wrote on standard error."""
        self.log.seek(0)
        return (self.log.read().strip().splitlines() or ["exited without output"])[-1][:200]

    def end(self) -> None:
        """Ends it, with what it started; may be called more than once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what it never read
                    stream.close()


def run_selftest(
    device: str = "auto",
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    begins: Callable[[Machine], None] = lambda machine: None,
    doing: Callable[[str], None] = lambda name: None,
    shows: Callable[[Row], None] = lambda row: None,
    checks: Mapping[str, Check] | None = None,
) -> Selftest:
    """Does the checks and returns what they found, which is kept for this device; not that of `quick`, whose
    times say little.

    Args:
        device: "auto", "cuda", "mps" or "cpu".
        only: names of checks; none for all.
        quick: takes the smallest sizes.
        begins: takes the machine, before the first check.
        doing: takes the name of each part as it begins; "" at the end.
        shows: takes each row as it is there.
        checks: in place of the table's.

    Raises:
        LabError: when a check is not known, or the device is not there.
    """
    checks = chosen(only) if checks is None else checks
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmlab-selftest-") as folder:
        # the speed of a toy is no measure for plans
        cache = Path(folder) / "cache" if quick else None
        worker = Worker(device, cache)
        found = Selftest(worker.machine, at=time.time(), quick=quick)
        try:
            begins(found.machine)
            for name, check in checks.items():
                for part in check.parts:
                    request = Request(name, check.target, part, check.limit, quick, folder)
                    if not worker.alive:
                        worker.end()
                        worker = Worker(device, cache)
                    doing(request.name)
                    for row in worker.rows(request):
                        found.rows.append(row)
                        shows(row)
                    if not worker.forks and (part == check.parts[-1] or found.rows[-1].status == "failed"):
                        worker.end()  # its memory, and what a fault leaves of a GPU, end with it
        finally:
            doing("")
            worker.end()
    found.seconds = time.perf_counter() - began
    found.file = None if quick else keep(found)
    return found


def keep(found: Selftest) -> Path | None:
    """Keeps what was found: of checks that were not done this time, what was known stays."""
    machine = found.machine
    before = kept_selftest(machine.name)
    kept = {**found.to_json(), "rows": merged(before, found)}
    attention = before.get("attention")
    for row in found.rows:
        if row.name == "attention: auto" and row.figures.get("kernel"):
            system = {"device": machine.name, "torch": machine.torch, "driver": machine.driver}
            attention = {**system, "kernel": row.figures["kernel"]}
    if attention is not None:
        kept["attention"] = attention
    return keep_selftest(machine.name, kept)


def merged(before: dict[str, Any], found: Selftest) -> list[dict[str, Any]]:
    """Returns the rows of this selftest, and of an earlier one with the same torch and driver those of other
    checks, in the order of the checks.
    """
    machine, done = asdict(found.machine), {row.check for row in found.rows}
    was = before.get("machine")
    same = isinstance(was, dict) and all(was.get(name) == machine[name] for name in ("torch", "driver"))
    rows = [asdict(row) for row in found.rows]
    if same and isinstance(before.get("rows"), list):
        rows += [row for row in before["rows"] if isinstance(row, dict) and row.get("check") not in done]
    places = list(CHECKS)
    return sorted(
        rows, key=lambda row: places.index(row["check"]) if row.get("check") in places else len(places)
    )


def last_selftest(device: str) -> Selftest:
    """Returns what is kept of a device.

    Args:
        device: its name.

    Raises:
        LabError: when nothing is, or it cannot be read.
    """
    kept = kept_selftest(device)
    try:
        rows = [Row.of(row) for row in kept["rows"]]
        return Selftest(Machine(**kept["machine"]), rows, kept["at"], kept["seconds"], kept["quick"])
    except (KeyError, TypeError):
        raise LabError("no selftest of this device is kept", remedy="`llmlab selftest` does one") from None

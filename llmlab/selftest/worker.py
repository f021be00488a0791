"""The process that does the checks: `python -m llmlab.selftest.worker DEVICE`.

It says on its first line what it found, then reads lines on standard input, each a part of a check, and
answers each with a line for every row and one that says that the part is over. On Linux without a GPU each
part is a fork of its own, so that its peak of memory is its own, and whatever ends it ends nothing else.
A GPU cannot be used in a fork: there the caller starts a process for each check.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from llmlab.errors import LabError
from llmlab.selftest.rows import Machine, Row
from llmlab.trust import redact

LOOK_EVERY = 0.1  # seconds
PARENT = os.getppid()
REPORT = "an error of the lab or of a library: please report it, with the JSON of this selftest"


@dataclass(frozen=True)
class Request:
    """A part of a check, as it is asked for.

    Attributes:
        check: its name.
        target: the function, `module:function`.
        part: of the check; "" where it has none.
        limit: seconds that it may take.
        quick: whether the smallest sizes are taken.
        folder: for its files.
    """

    check: str
    target: str
    part: str
    limit: int
    quick: bool
    folder: str

    @property
    def name(self) -> str:
        """What its rows are about."""
        return f"{self.check}: {self.part}" if self.part else self.check


def rows_of(request: Request, device: Any) -> Iterator[Row]:
    """Yields the rows of a part with the time of each; an exception becomes a row that failed."""
    from llmlab.selftest.setting import Setting

    began = time.perf_counter()
    try:
        module, function = request.target.split(":")
        setting = Setting(device, request.quick, Path(request.folder))
        check: Any = getattr(importlib.import_module(module), function)
        began = time.perf_counter()  # without the time of the imports
        for row in check(setting, request.part):
            now = time.perf_counter()
            yield replace(row, check=request.check, seconds=now - began)
            began = now
    except LabError as error:
        yield _failed(request, redact(str(error)), "", time.perf_counter() - began)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given").strip()
        found = f"{type(error).__name__}: {redact(reason)[:200]}"
        row = _failed(request, found, REPORT, time.perf_counter() - began)
        yield replace(row, figures={"traceback": redact(traceback.format_exc())})


def _failed(request: Request, found: str, remedy: str, seconds: float = 0.0) -> Row:
    return Row(request.name, "failed", found, remedy, {}, seconds, request.check)


def machine(device: str) -> Machine:
    """Returns where this process computes.

    Raises:
        LabError: when the device is not there.
    """
    import torch
    import transformers

    from llmlab import __version__
    from llmlab.models.device import choose_device, choose_precision, free_bytes, system_of

    chosen = choose_device(device)
    system = system_of(chosen)
    return Machine(
        chosen,
        system.device,
        choose_precision("auto", chosen),
        system.torch,
        transformers.__version__,
        system.driver,
        str(torch.version.cuda or ""),
        free_bytes(torch.device(chosen)),
        torch.get_num_threads(),
        os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        __version__,
    )


def _say(out: TextIO, **what: Any) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


def _fork(request: Request, device: str, out: TextIO) -> None:
    """Does a part in a process of its own, and says how it ended where it said nothing itself."""
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for row in rows_of(request, device):
                _say(out, row=asdict(row))
            code = 0
        finally:
            os._exit(code)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if os.getppid() != PARENT:  # the selftest was ended without a word
            os.kill(child, signal.SIGKILL)
            os._exit(1)
        if time.perf_counter() - began > request.limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found = f"did not end within {request.limit} s"
            return _say(out, row=asdict(_failed(request, found, REPORT, request.limit)))
        time.sleep(LOOK_EVERY)
    if code := os.waitstatus_to_exitcode(ended[1]):
        _say(out, row=asdict(died(request, code, time.perf_counter() - began)))


def died(request: Request, code: int, seconds: float) -> Row:
    """Returns the row of a part whose process ended without a word."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    remedy = "too little memory: close other programs, or `--quick`" if code == -signal.SIGKILL else REPORT
    return _failed(request, f"its process ended with {how}", remedy, seconds)


def _end_with_parent() -> None:
    while os.getppid() == PARENT:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answers requests until there are no more."""
    # what libraries print goes to standard error: standard output carries the rows
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = machine(sys.argv[1])
    except LabError as error:
        return _say(out, error={"what": error.what, "where": error.where, "remedy": error.remedy})
    from llmlab.libraries import quiet_libraries

    quiet_libraries(lambda line: None)
    forks = found.device == "cpu" and sys.platform == "linux"
    if not forks:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    else:  # each fork has these then
        import trl.trainer.sft_trainer  # noqa: F401

        import llmlab.training.engine.run
        import llmlab.training.methods.sft  # noqa: F401
    _say(out, machine=asdict(found), forks=forks)
    for line in sys.stdin:
        request = Request(**json.loads(line))
        if forks:
            _fork(request, found.device, out)
        else:
            for row in rows_of(request, found.device):
                _say(out, row=asdict(row))
        _say(out, over=request.name)


if __name__ == "__main__":
    main()

"""Starts a run's processes with torch's own launcher, and says once how they ended."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.errors import LabError
from llmlab.launching.rank_files import EXIT, STACKS, STATE, read
from llmlab.launching.stacks import innermost

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

SEAL_SECONDS = 1800  # that a stop may take: the checkpoint of a large model on a slow disk
LOG = "stderr.log"


@dataclass(frozen=True)
class Placement:
    """How many processes there are, and where they meet.

    Attributes:
        devices: processes of this machine.
        nodes: machines.
        rendezvous: HOST:PORT where the launchers of several machines meet; "" for one machine.
        job_id: the same on every machine.
        restarts: how often failed processes are started again.
    """

    devices: int
    nodes: int = 1
    rendezvous: str = ""
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    restarts: int = 0


@dataclass(frozen=True)
class Ended:
    """How one process ended.

    Attributes:
        rank: of this machine.
        code: that it ended with; below 0 the signal that killed it; None where it is not known.
        message: what it had to say, "" for nothing.
        because: "lost" or "late" where it ended because of another process, else "".
        step: of its last update, None before the first.
        run: folder of the run, "" where it was not opened.
        doing: the innermost line of its stack, "" where it was not asked.
        log: the file that its stderr went to, where it did not go to the screen.
    """

    rank: int
    code: int | None
    message: str
    because: str
    step: int | None
    run: str
    doing: str
    log: Path

    @property
    def place(self) -> str:
        """How far it was, in words."""
        return f"after step {self.step}" if self.step is not None else "before the first step"


def under_a_launcher() -> bool:
    """Returns whether this process is one of a job that some launcher started."""
    return "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], placement: Placement) -> int:
    """Runs `llmlab ARGUMENTS` in several processes and returns the exit code of the job: that of the run,
    128 plus the signal where it was stopped.

    The screen belongs to the first process; what the others print is kept and shown where they fail.

    Raises:
        LabError: when a process failed, with what it had to say.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    from llmlab.launching.agent import Agent

    for name in logging.Logger.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it is said here
    logs = Path(tempfile.mkdtemp(prefix="llmlab-ranks-"))
    _share_the_cores(placement.devices)
    if placement.nodes > 1:  # else torch tells a machine that comes back nothing of where the first one is
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    failure: LabError | None = None
    try:
        agent = Agent(
            _launch_config(placement, logs), ["-m", "llmlab.cli.rank", str(os.getpid()), *arguments], logs
        )
        result = agent.run_job()
        killed = {failed.local_rank: failed.exitcode for failed in result.failures.values()} if result else {}
        ended = _ended(logs, {rank: code for rank, code in killed.items() if rank not in agent.cut_off})
        if result is None or result.is_failed():
            failure = failure_of(ended, placement)
    except SignalException as stopped:
        ended = _ended(logs, {})
        if not any(one.message and not one.because for one in ended):
            return _code_of(ended, otherwise=128 + int(stopped.sigval))
        failure = failure_of(ended, placement)  # it could not save, and says why
    except (RendezvousError, DistError) as error:
        ended = _ended(logs, {})
        failure = failure_of(ended, placement) if ended else not_met(error, placement)
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    if failure:
        raise failure
    return _code_of(ended, otherwise=0)


def _launch_config(placement: Placement, logs: Path) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    aside = {rank: Std.ALL for rank in range(placement.devices) if rank}
    return LaunchConfig(
        min_nodes=placement.nodes,
        max_nodes=placement.nodes,
        nproc_per_node=placement.devices,
        run_id=placement.job_id,
        rdzv_backend="c10d",
        rdzv_endpoint=placement.rendezvous or "localhost:0",
        max_restarts=placement.restarts,
        shutdown_timeout=SEAL_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=aside),
    )


def not_met(error: Exception, placement: Placement) -> LabError:
    """Returns the error of machines that have not found each other."""
    return LabError(
        f"the machines of the job did not meet ({str(error).splitlines()[0]})",
        where=placement.rendezvous,
        remedy=f"start the same command on all {placement.nodes} machines, with an address and a port"
        " that all of them reach",
        exit_code=1,
    )


def failure_of(ended: Sequence[Ended], placement: Placement) -> LabError:
    """Returns the one error of a job whose processes failed: that of the process that began it."""
    run = next((one.run for one in ended if one.run), "")
    several = placement.nodes > 1
    again = f"the same command on all {placement.nodes} machines" if several else f"`llmlab run {run}`"
    resume = f"to resume from the last checkpoint: {again}" if run else ""
    waiting = [one for one in ended if one.because == "late"]
    if said := next((one for one in ended if one.message and not one.because), None):
        return LabError(said.message, exit_code=said.code or 1)
    if waiting:
        what = f"{waiting[0].message}: {_late(ended)}"
        return LabError(what, where=run, remedy=resume, exit_code=1)
    dead = [one for one in ended if one.code is not None and one.code < 0]
    dead = [
        one for one in dead if one.code != -signal.SIGTERM
    ] or dead  # with which the launcher ends the others
    if dead:
        what = ", ".join(f"process {one.rank} {_signal(-(one.code or 0))} {one.place}" for one in dead)
        killed = any(one.code == -signal.SIGKILL for one in dead)
        hint = "the machine may have been out of memory (`dmesg` says so)" if killed else ""
        return LabError(what, where=run, remedy="; ".join(filter(None, (hint, resume))), exit_code=1)
    if silent := next((one for one in ended if one.code and not one.message), None):
        tail = _last_lines(silent.log)
        what = f"process {silent.rank} failed {silent.place}" + (f":\n{tail}" if tail else "")
        return LabError(what, where=run, remedy=resume, exit_code=1)
    what = next((one.message for one in ended if one.because), "a process failed")
    if several:
        what = "lost the connection to another machine of the job"
    return LabError(what, where=run, remedy=resume, exit_code=1)


def _late(ended: Sequence[Ended]) -> str:
    """Returns which processes did not come, how far they were and what they were doing."""
    late = [one for one in ended if one.because != "late"]
    words = [f"process {one.rank} {one.place}" + (f", in {one.doing}" if one.doing else "") for one in late]
    return "; ".join(words) or "processes of another machine"


def _ended(logs: Path, killed: dict[int, int]) -> list[Ended]:
    """Returns how the processes of this machine ended, in the last attempt."""
    attempts = sorted(logs.glob("*/attempt_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))
    ended = []
    for folder in sorted(attempts[-1].iterdir(), key=lambda path: int(path.name)) if attempts else []:
        rank = int(folder.name)
        state, end = read(folder / STATE), read(folder / EXIT)
        ended.append(
            Ended(
                rank=rank,
                code=end.get("code", killed.get(rank)),
                message=end.get("message", ""),
                because=end.get("because", ""),
                step=state.get("step"),
                run=state.get("run", ""),
                doing=innermost(folder / STACKS),
                log=folder / LOG,
            )
        )
    return ended


def _code_of(ended: Sequence[Ended], *, otherwise: int) -> int:
    """Returns the exit code of a job in which no process failed."""
    codes = [one.code for one in ended if one.code]
    return codes[0] if codes and all(code > 0 for code in codes) else otherwise


def _share_the_cores(devices: int) -> None:
    """Lets the processes divide the machine's cores, where nothing else was asked for."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // devices)))


def _signal(number: int) -> str:
    with suppress(ValueError):
        return f"was ended by {signal.Signals(number).name}"
    return f"was ended by signal {number}"


def _last_lines(log: Path, count: int = 5) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])
    return ""

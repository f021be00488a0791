"""torch's elastic agent, which ends the other processes of one that failed by what they are doing.

torch gives them 30 seconds after SIGTERM, whatever they do. A process that waits for one that is gone can
save nothing and is ended after `GRACE`; one that is moving a whole checkpoint into place is left alone until
it has done so. The same holds where the launcher is stopped and a process fails meanwhile.

A machine that is lost without a word (power, network) leaves the launchers of the others waiting for an
answer of its store, without an end: their processes give up after `process_timeout`, and then the connection
is cut here, too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import LaunchConfig

from llmlab.launching.rank_files import writing_processes

GRACE = 5.0  # seconds that a process has to end by itself where another one has failed
KILL_SECONDS = 30.0  # that the system may take to end a process that was killed
LOOK_EVERY = 0.1  # seconds
STORE_SECONDS = 15.0  # that an answer of the store may take where a process has ended
MEETING_SECONDS = 900.0  # that the machines may take to meet again; torch gives up after 600
KNOWS_ENDS = hasattr(os, "waitid")  # not on macOS, where torch's 30 seconds hold


class Agent(LocalElasticAgent):
    """The agent of one machine.

    Args:
        config: of the job.
        arguments: of Python, for every process.
        logs: folder of the files of the processes.

    Attributes:
        cut_off: the processes, by their number on this machine, that were ended since another one had failed.
    """

    def __init__(self, config: LaunchConfig, arguments: Sequence[str], logs: Path):
        meeting = RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            **config.rdzv_configs,
        )
        assert config.logs_specs is not None and config.shutdown_timeout is not None
        self.store = config.rdzv_endpoint if config.max_nodes > 1 else ""  # host and port
        self.rendezvous = get_rendezvous_handler(meeting)
        spec = WorkerSpec(
            role=config.role,
            local_world_size=config.nproc_per_node,
            entrypoint=sys.executable,
            args=tuple(arguments),
            rdzv_handler=self.rendezvous,
            max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval,
            numa_options=config.numa_options,
        )
        super().__init__(spec, config.logs_specs, shutdown_timeout=config.shutdown_timeout)
        self.logs, self.seal_seconds = logs, float(config.shutdown_timeout)
        self._looked = time.monotonic()  # at the processes, the last time
        self.cut_off: set[int] = set()

    def run_job(self) -> RunResult | None:
        """Runs the processes until all have ended, or one has failed and cannot be started again; None where
        another machine has closed the job.

        Raises:
            SignalException: when it was stopped; the processes have ended then.
            RendezvousError: when the machines do not meet, or do not reach each other any more.
        """
        keep_open = False
        if KNOWS_ENDS and self.store:
            threading.Thread(target=self._watch_the_store, daemon=True).start()
        try:
            result: RunResult | None = self.run()
            return result
        except SignalException:
            keep_open = True  # closing it would forbid the other machines to meet again
            raise
        finally:
            if not keep_open:
                self.rendezvous.shutdown()

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Lets the machines meet, and gives the processes a store of their own for each attempt.

        torch keeps the store of the first one: processes that were started again found the addresses of those
        before, and waited for each other without an end (5 of 6 restarts with gloo).
        """
        meeting: Any = self.rendezvous
        meeting._shared_tcp_store_server = meeting._bootstrap_store_info = None
        super()._rendezvous(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._looked = time.monotonic()
        if KNOWS_ENDS and any(map(_code, worker_group.workers)):
            self.cut_off = set()  # of an attempt before
            self._end(signal.SIGTERM, self.seal_seconds)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        if KNOWS_ENDS:
            self._end(death_sig, timeout)
        super()._shutdown(death_sig, timeout)

    def _end(self, number: int, timeout: float) -> None:
        """Sends a signal to the processes and waits until they have ended, as long as they may."""
        workers = [worker for worker in self.get_worker_group().workers if worker.id]
        for worker in workers:
            if _code(worker) is None:
                os.killpg(worker.id, number)
        ends = time.monotonic() + timeout
        busy = dict.fromkeys((worker.id for worker in workers), time.monotonic())  # when they last were
        while running := [worker for worker in workers if _code(worker) is None]:
            self._looked = time.monotonic()
            now, writing = time.monotonic(), writing_processes(self.logs)
            none_failed = not any(map(_code, workers))
            for worker in running:
                if none_failed or worker.id in writing:
                    busy[worker.id] = now
                if now > min(ends, busy[worker.id] + GRACE):
                    self.cut_off.add(worker.local_rank)
                    os.killpg(worker.id, signal.SIGKILL)
            if now > min(ends, max(busy.values()) + GRACE) + KILL_SECONDS:
                return  # one that does not even end so hangs in a driver: torch leaves it
            time.sleep(LOOK_EVERY)

    def _watch_the_store(self) -> None:
        """Cuts the connection to a store that does not answer, where a process has ended and should be
        looked at.
        """
        group, port = self.get_worker_group(), int(self.store.rpartition(":")[2])
        watching = (WorkerState.HEALTHY, WorkerState.UNHEALTHY, WorkerState.FAILED)
        while True:
            time.sleep(LOOK_EVERY)
            limit = STORE_SECONDS if group.state in watching else MEETING_SECONDS
            waits = time.monotonic() - self._looked > limit
            if waits and any(worker.id and _code(worker) is not None for worker in group.workers):
                _cut_connections(port)
                return


def _code(worker: Worker) -> int | None:
    """Returns what a process ended with, without taking it from torch, which waits for it; None while it
    runs. Where torch has taken it, 0.
    """
    try:
        ended = os.waitid(os.P_PID, worker.id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return None if ended is None else ended.si_status


def _cut_connections(port: int) -> None:
    """Ends the connections of this process to a port of other processes, as if these had ended them."""
    for file in Path("/proc/self/fd").glob("*"):
        with suppress(OSError, ValueError, IndexError):  # the last where it is no TCP connection
            if os.readlink(file).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(file.name))) as connection:
                    if connection.getpeername()[1] == port:
                        connection.shutdown(socket.SHUT_RDWR)

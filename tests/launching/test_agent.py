"""How the launcher ends the other processes of one that failed; the processes are real, and do nothing."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig

from llmlab.launching import agent as module
from llmlab.launching.agent import Agent
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,  # processes that import torch
    pytest.mark.skipif(not module.KNOWS_ENDS, reason="needs os.waitid"),
]
ROOT = Path(__file__).parents[2]
FAILS = """
import os, signal, sys, time
from pathlib import Path
from llmlab.launching.rank_files import RankFiles
signal.signal(signal.SIGTERM, signal.SIG_IGN)
rank, place = os.environ["LOCAL_RANK"], Path(sys.argv[1])
if rank == "0":
    while not (place / "writes").exists():
        time.sleep(0.02)
    sys.exit(3)
if rank == "1":
    with RankFiles.of_this_process().writing():
        (place / "writes").touch()
        time.sleep(2)
        (place / "written").touch()
time.sleep(600)
"""
SLOW = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: None)
Path(sys.argv[1], "began").touch()
signal.pause()
time.sleep(1.5)
Path(sys.argv[1], "ended").touch()
"""
GIVES_UP = """
import sys, time
from pathlib import Path
Path(sys.argv[1], sys.argv[2]).touch()
while not Path(sys.argv[1], "give-up").exists():
    time.sleep(0.02)
sys.exit(1)
"""


def agent_of(place, code, *arguments, processes=1, nodes=1, port=0):
    """Returns an agent whose processes run some code, with a folder and arguments."""
    logs = Path(place) / f"logs-{os.getpid()}"
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        shutdown_timeout=600,
    )
    return Agent(config, ["-c", code, str(place), *arguments], logs)


@pytest.fixture(autouse=True)
def signals_as_before(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.5)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # torch's
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_one_that_can_do_nothing_is_cut_off_and_one_that_writes_is_not(tmp_path):
    """The first process fails, no other heeds SIGTERM, and the second writes for longer than the grace."""
    agent = agent_of(tmp_path, FAILS, processes=3)
    result = agent.run_job()
    assert result.failures[0].exitcode == 3 and agent.cut_off == {1, 2}
    assert (tmp_path / "written").exists()


def test_where_none_failed_a_stop_may_take_longer_than_the_grace(tmp_path):
    agent = agent_of(tmp_path, SLOW)

    def stop():
        until((tmp_path / "began").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(module.SignalException):
        agent.run_job()
    assert not agent.cut_off and (tmp_path / "ended").exists()


@pytest.mark.parametrize("gives_up_after", [0, 1])
def test_a_machine_that_falls_silent_does_not_hold_the_others(tmp_path, monkeypatch, gives_up_after):
    """The launcher that has the store is frozen; then the processes of the other machine give up. By then
    the launcher there waits for an answer of the store; or it does so afterwards.
    """
    monkeypatch.setattr(module, "STORE_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    there = "from tests.launching.test_agent import GIVES_UP, agent_of; import sys;"
    there += f"agent_of(sys.argv[1], GIVES_UP, 'there', nodes=2, port={port}).run_job()"
    first = subprocess.Popen([sys.executable, "-c", there, str(tmp_path)], cwd=ROOT)

    def silence():
        until(lambda: (tmp_path / "here").exists() and (tmp_path / "there").exists())
        first.send_signal(signal.SIGSTOP)
        time.sleep(gives_up_after)
        (tmp_path / "give-up").touch()

    until(lambda: opens(port))
    threading.Thread(target=silence).start()
    try:
        agent = agent_of(tmp_path, GIVES_UP, "here", nodes=2, port=port)
        with suppress(RendezvousError):
            assert agent.run_job().is_failed()
    finally:
        first.kill()
        first.wait()


def opens(port):
    """Returns whether somebody listens at a port."""
    with suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False

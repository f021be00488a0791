"""Several processes of one run: what is said when one fails, and that nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llmlab.config import save_config
from llmlab.errors import LabError
from llmlab.launching.start import placement
from llmlab.launching.torchrun import Ended, Placement, failure_of
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import RunFolder
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]


def ended(rank, **changes):
    usual = dict(code=None, message="", because="", step=7, run="checkpoints/run", doing="", log=Path("none"))
    return Ended(rank=rank, **{**usual, **changes})


def said(*parts, nodes=1):
    return str(failure_of(parts, Placement(devices=len(parts), nodes=nodes)))


def test_the_process_that_was_killed_is_named():
    text = said(
        ended(0, code=1, message="lost the connection to another process", because="lost"),
        ended(1, code=-signal.SIGKILL),
        ended(2, code=-signal.SIGTERM),  # by the launcher, since another one failed
    )
    assert "process 1 was ended by SIGKILL after step 7" in text and "process 2" not in text
    assert text.endswith("`llmlab run checkpoints/run`")


def test_what_a_process_had_to_say_is_said_as_it_is():
    error = failure_of([ended(0, code=2, message="`batch_size` 0 must be at least 1")], Placement(devices=1))
    assert str(error) == "`batch_size` 0 must be at least 1" and error.exit_code == 2


def test_a_process_that_does_not_come_is_named_with_its_place():
    text = said(
        ended(0, code=1, message="a process waited 30 s for the others", because="late"),
        ended(1, code=-signal.SIGKILL, step=5, doing="slow_reward (rewards.py:12)"),
    )
    assert "process 1 after step 5, in slow_reward (rewards.py:12)" in text and "SIGKILL" not in text


def test_processes_of_another_machine_are_not_invented():
    assert "another machine" in said(ended(0, code=1, message="waited", because="late"), nodes=2)


def test_the_last_lines_of_a_silent_process_are_shown(tmp_path):
    log = tmp_path / "stderr.log"
    log.write_text("Traceback\n  deep\nValueError: seven\n")
    assert "process 1 failed before the first step:" in (text := said(ended(1, code=1, step=None, log=log)))
    assert "ValueError: seven" in text


@pytest.mark.parametrize(
    "changes, rendezvous, message",
    [
        (dict(devices=2, device="cuda"), "", "is not on this machine"),
        (dict(nodes=2), "", "have to meet somewhere"),
        (dict(nodes=2), "host:port", "is no HOST:PORT"),
        (dict(nodes=2), "host:99999", "is no HOST:PORT"),
    ],
)
def test_what_cannot_be_started_is_refused(base_config, tmp_path, changes, rendezvous, message):
    with pytest.raises(LabError, match=message):
        placement(base_config(tmp_path, **changes), rendezvous, "job")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a dead launcher")
def test_a_process_whose_launcher_died_before_it_began_ends():
    rank = [sys.executable, "-m", "llmlab.cli.rank", "1", "run", "none.json"]
    assert subprocess.run(rank, cwd=ROOT, timeout=PATIENCE).returncode == 143


def started(log, config, *more):
    """Starts a run whose config asks for two devices, FSDP2 allowed on processors."""
    shims = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "shims")])
    with open(log, "w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "llmlab", "run", str(config), *more],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": shims},
        )


def ranks_of(job):
    """Returns the processes that a launcher started."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.slow
def test_killed_started_again_stopped_and_resumed_it_ends_like_one_process(base_config, tmp_path):
    """With FSDP2: a process is killed and torchrun starts them again; then SIGTERM saves, with 143; then it
    resumes and ends as a run in one process does. No process is left.
    """
    from llmlab.training.engine.run import run

    folder = tmp_path / "two"
    still = dict(save_every=2, log_every=1, eval_fraction=0.0, warmup_steps=0, scheduler="none")
    more = dict(devices=2, parallel="fsdp2", restarts=1, batch_size=2, max_steps=300)
    two = save_config(base_config(folder, **still, **more), tmp_path / "two.json")
    log = tmp_path / "log"
    job = started(log, two)

    def until_it(condition):
        until(lambda: condition() or job.poll() is not None, log.read_text)
        assert job.poll() is None, log.read_text()

    until_it(lambda: Checkpoint.all_in(folder))
    killed = ranks_of(job)
    os.kill(killed[1], signal.SIGKILL)
    until_it(lambda: len(now := ranks_of(job)) == 2 and not set(now) & set(killed))
    step = Checkpoint.all_in(folder)[0].step
    until_it(lambda: Checkpoint.all_in(folder)[0].step > step)
    members = ranks_of(job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(PATIENCE) == 143, log.read_text()
    text = log.read_text()
    assert "the processes were started again (1 of 1)" in text and "sharded" in text
    assert "Traceback" not in text and "torch/distributed" not in text
    assert RunFolder(folder).record["status"] == "stopped"
    assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]
    last = Checkpoint.all_in(folder)[0].step + 2
    done = started(log, two, "--set", f"max_steps={last}", "--json")
    assert done.wait(PATIENCE) == 0, log.read_text()
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "done"
    whole = run(base_config(tmp_path / "one", **still, batch_size=4, max_steps=last))
    losses = [
        {line["step"]: line["loss"] for line in RunFolder(path).metrics() if "loss" in line}
        for path in (folder, whole.folder)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == last
    weights, same = (load_file(path / "final" / "model.safetensors") for path in (folder, whole.folder))
    assert max((weights[name] - same[name]).abs().max().item() for name in weights) < 1e-3

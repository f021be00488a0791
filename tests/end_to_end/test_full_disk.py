"""A full disk in the middle of a run: it waits, loses nothing, goes on when there is room,
and ends as if nothing had been.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from transformers import TrainerState

from llmlab.config import SFTConfig, save_config
from llmlab.errors import LabError
from llmlab.runs.disk import FullDisk
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.metrics import MetricsWriter
from llmlab.training.engine.optimizer_state import save_parts
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.slow  # trains

ROOT = Path(__file__).parents[2]
SHIMS = ROOT / "tests" / "shims"  # they allow FSDP2 on processors
SIZE = 160_000_000  # a run wants to see 64 MB free before it begins


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def config(base_run, folder, output, **changes):
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in range(64))
    )
    return save_config(
        SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[str(rows)],
            learning_rate=1e-3,
            warmup_steps=0,
            gradient_accumulation_steps=1,
            max_length=64,
            save_every=4,
            log_every=1,
            eval_fraction=0.0,
            output_dir=str(output),
            save_best_only=False,
            **{"max_steps": 60, "batch_size": 8, **changes},
        ),
        folder / f"{output.name}.json",
    )


def fill(place, leave=0):
    """Fills a disk to its last byte, or leaves some; returns the file, which grows if it is there."""
    filler = place / "filler"
    with open(filler, "ab", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            pass
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def test_it_waits_and_ends_alike(base_run, small_disk, tmp_path):
    command = [sys.executable, "-m", "llmlab", "run"]
    subprocess.run(
        [*command, str(config(base_run, tmp_path, tmp_path / "whole"))],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    log = tmp_path / "log"
    with open(log, "w") as output:
        child = subprocess.Popen(
            [*command, str(config(base_run, tmp_path, small_disk / "run"))], stdout=output, stderr=output
        )
    folder = RunFolder(small_disk / "run")
    until(lambda: folder.checkpoints() or child.poll() is not None, log.read_text, pause=0.005)
    filler = fill(small_disk)
    until(lambda: "the disk is full" in log.read_text() or child.poll() is not None, log.read_text)
    assert child.poll() is None, log.read_text()
    assert folder.checkpoints()[0].fault() == "", "the earlier checkpoint is whole"
    time.sleep(1.5)
    assert child.poll() is None, "it waits"
    filler.unlink()
    assert child.wait(PATIENCE) == 0, log.read_text()
    weights, wanted = (
        load_file(place / "final" / "model.safetensors") for place in (folder.path, tmp_path / "whole")
    )
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    losses = [
        [line["loss"] for line in RunFolder(place).metrics() if "loss" in line]
        for place in (folder.path, tmp_path / "whole")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 60
    (events,) = (folder.path / "tensorboard").iterdir()
    drawn = {
        event.step: value.tensor.float_val[0]
        for event in EventFileLoader(str(events)).Load()
        for value in event.summary.value
        if value.tag == "train/loss"
    }
    assert [drawn[step] for step in range(1, 61)] == pytest.approx(
        losses[0]
    ) and "Traceback" not in log.read_text()
    assert not (folder.path / ".saving").exists()


def test_stopped_while_it_waits_nothing_is_lost(base_run, small_disk, tmp_path):
    command = [sys.executable, "-m", "llmlab", "run"]
    path = config(base_run, tmp_path, small_disk / "run")
    log = tmp_path / "log"
    with open(log, "w") as output:
        child = subprocess.Popen([*command, str(path)], stdout=output, stderr=output)
    folder = RunFolder(small_disk / "run")
    until(lambda: folder.checkpoints() or child.poll() is not None, log.read_text, pause=0.005)
    filler = fill(small_disk)
    until(lambda: "the disk is full" in log.read_text() or child.poll() is not None, log.read_text)
    assert child.poll() is None, log.read_text()
    child.terminate()
    assert child.wait(PATIENCE) == 1 and "earlier checkpoints are complete" in log.read_text()
    assert folder.checkpoints()[0].fault() == ""
    filler.unlink()
    again = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0 and "resuming from" in again.stderr


@pytest.mark.timeout(600)  # three runs in two processes
def test_two_processes_wait_stop_resume_and_end_alike(base_run, small_disk, tmp_path):
    """FSDP2, where both write. The second time there is room for half a checkpoint: it is in the middle of
    writing that one of them finds the disk full.
    """
    two = dict(devices=2, parallel="fsdp2", batch_size=4, max_steps=60)
    shims = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(SHIMS)])}
    log = tmp_path / "log"

    def started(path):
        with open(log, "w") as output:
            command = [sys.executable, "-m", "llmlab", "run", str(path)]
            return subprocess.Popen(command, stdout=output, stderr=output, env=shims)

    def waits(child, after, leave=0):
        filled = after

        def full():
            nonlocal filled
            if newest() > filled:  # an older checkpoint went, which made room
                filled = newest()
                fill(small_disk, leave)
            return "the disk is full" in log.read_text() or child.poll() is not None

        until(full, log.read_text, pause=0.005)
        assert child.poll() is None and folder.checkpoints()[0].fault() == "", log.read_text()
        return small_disk / "filler"

    def newest():
        return max((one.step for one in folder.checkpoints()), default=0)

    assert started(config(base_run, tmp_path, tmp_path / "whole", **two)).wait(PATIENCE) == 0, log.read_text()
    path, folder = config(base_run, tmp_path, small_disk / "run", **two), RunFolder(small_disk / "run")
    child = started(path)
    filler = waits(child, 0)
    child.terminate()
    assert child.wait(PATIENCE) == 1, log.read_text()
    said = log.read_text()
    assert said.count("stopped while the disk was full; earlier checkpoints are complete") == 1, said
    assert said.count("the disk is full") == 1 and "Traceback" not in said and "another process" not in said
    filler.unlink()
    last = folder.checkpoints()[0]
    size = sum(file.stat().st_size for file in last.path.rglob("*") if file.is_file())
    child = started(path)
    filler = waits(child, last.step, size // 2)
    time.sleep(1.5)
    assert child.poll() is None, "it waits"
    filler.unlink()
    assert child.wait(PATIENCE) == 0, log.read_text()
    assert "resuming from" in log.read_text() and not (folder.path / ".saving").exists()
    weights, wanted = (
        load_file(place / "final" / "model.safetensors") for place in (folder.path, tmp_path / "whole")
    )
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_optimizers_state_that_finds_no_room_says_so_as_any_file_does(small_disk):
    """torch wraps it in an error of its own, which is no `Exception`."""
    model = torch.nn.Linear(512, 512)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    fill(small_disk, leave=100_000)
    with pytest.raises(OSError, match="No space left"):
        save_parts(model, optimizer, small_disk, main=True)


def test_a_line_of_figures_that_finds_no_room_hears_the_stop(small_disk):
    folder, said = RunFolder(small_disk), []
    record = MetricsWriter(folder, {}, FullDisk(said.append, lambda: True))
    fill(small_disk)
    with pytest.raises(LabError, match="stopped while the disk was full"):
        record.on_log(None, TrainerState(global_step=3), None, logs={"loss": 1.0})
    assert len(said) == 1 and folder.metrics() == []

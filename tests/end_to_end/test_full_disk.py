"""A full disk in the middle of a run: it waits, loses nothing, goes on when there is room,
and ends as if nothing had been.
"""

import json
import subprocess
import sys
import time

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
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.slow  # trains

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


def config(base_run, folder, output):
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in range(64))
    )
    return save_config(
        SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[str(rows)],
            max_steps=60,
            learning_rate=1e-3,
            batch_size=8,
            warmup_steps=0,
            gradient_accumulation_steps=1,
            max_length=64,
            save_every=4,
            log_every=1,
            eval_fraction=0.0,
            output_dir=str(output),
            save_best_only=False,
        ),
        folder / f"{output.name}.json",
    )


def fill(place):
    """Fills a disk to its last byte; returns the file."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            pass
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


def test_a_line_of_figures_that_finds_no_room_hears_the_stop(small_disk):
    folder, said = RunFolder(small_disk), []
    record = MetricsWriter(folder, {}, FullDisk(said.append, lambda: True))
    fill(small_disk)
    with pytest.raises(LabError, match="stopped while the disk was full"):
        record.on_log(None, TrainerState(global_step=3), None, logs={"loss": 1.0})
    assert len(said) == 1 and folder.metrics() == []

"""Checkpoints whose manifest fits and whose files hold something else: one message each,
and the next older one is named.
"""

import io
import json
import pickle
import re
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.runs.manifest import write_manifest
from llmlab.training.engine.run import run
from tests.fuzzing import Hostile
from tests.training.conftest import sft_config, stopped_run


@pytest.fixture(scope="module")
def run_folder(base_run, tmp_path_factory):
    """A stopped run with checkpoints 4 and 6, and what it was started with."""
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        return stopped_run(base_run, folder, patch, eval_fraction=0.0), folder


def torch_bytes(data):
    out = io.BytesIO()
    torch.save(data, out)
    return out.getvalue()


def hostile(marker):
    """What torch.save writes, its pickle replaced by one that runs a command."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile(marker), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


def repacked(file, name, content):
    """A file of torch.save with other content in one of its parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(out, "w") as archive:
        for part in whole.namelist():
            archive.writestr(part, content if part.endswith(name) else whole.read(part))
    return out.getvalue()


def changed(name, **entries):
    return lambda folder: json.dumps({**json.loads((folder / name).read_text()), **entries}).encode()


def weights(change):
    def made(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors")
        return (folder / "model.safetensors").read_bytes()

    return made


def state(change):
    def made(folder):
        found = torch.load(folder / "optimizer.pt", weights_only=True)
        change(found)
        return torch_bytes(found)

    return made


STATE, LAB = "trainer_state.json", "lab_state.json"
GARBAGE = b"\x93\x00garbage\xff" * 20
CASES = {
    "no state": (STATE, lambda folder: b"", "trainer_state.json is not valid JSON"),
    "state garbage": (STATE, lambda folder: GARBAGE, "trainer_state.json is not UTF-8 text"),
    "state a list": (STATE, lambda folder: b"[]", "trainer_state.json holds no JSON object"),
    "state of another": (STATE, changed(STATE, global_step=7), "trainer_state.json is of step 7"),
    "state step text": (STATE, changed(STATE, global_step="6"), "trainer_state.json is of step '6'"),
    "state history": (STATE, changed(STATE, log_history=7), "`log_history`"),
    "state unknown": (STATE, changed(STATE, surprise=7), "unknown entry `surprise`"),
    "state batch": (STATE, changed(STATE, train_batch_size=None), "`train_batch_size`"),
    "lab empty": (LAB, lambda folder: b"", "lab_state.json is not valid JSON"),
    "lab deep": (LAB, lambda folder: b"[" * 100_000, "lab_state.json is nested"),
    "lab object": (LAB, lambda folder: b"{}", "lab_state.json has no counters"),
    "lab counters": (LAB, changed(LAB, counters={"args": 1}), "unknown counter `args`"),
    "lab loss": (LAB, changed(LAB, loss="a"), "lab_state.json lacks the loss"),
    "lab figures": (LAB, changed(LAB, figures=[1]), "lab_state.json has no lists"),
    "config": ("config.json", lambda folder: b"null", "config.json holds no JSON object"),
    "weights empty": ("model.safetensors", lambda folder: b"", "model.safetensors is truncated"),
    "weights cut": (
        "model.safetensors",
        lambda folder: (folder / "model.safetensors").read_bytes()[:-9],
        "model.safetensors is truncated",
    ),
    "weights none": ("model.safetensors", weights(lambda held: {}), "missing"),
    "a weight less": (
        "model.safetensors",
        weights(lambda held: dict(list(held.items())[1:])),
        "the weights of .* are missing",
    ),
    "weights shape": (
        "model.safetensors",
        weights(lambda held: {n: v[:1].clone() for n, v in held.items()}),
        "size|shape|Error",
    ),
    "pickle beside": (
        "pytorch_model.bin",
        lambda folder: torch_bytes({}),
        "pytorch_model.bin is a pickle.* not opened",
    ),
    "optimizer empty": ("optimizer.pt", lambda folder: b"", "optimizer.pt is not a file that torch writes"),
    "optimizer garbage": (
        "optimizer.pt",
        lambda folder: GARBAGE,
        "optimizer.pt is not a file that torch writes",
    ),
    "optimizer list": ("optimizer.pt", lambda folder: torch_bytes([1]), "cannot be resumed from"),
    "optimizer other": (
        "optimizer.pt",
        state(lambda found: found["state"][0].update(exp_avg=torch.zeros(3))),
        "`exp_avg` in .* not have the shape",
    ),
    "optimizer number": (
        "optimizer.pt",
        state(lambda found: found["state"].update({0: 7})),
        "optimizer.pt|cannot be",
    ),
    "optimizer rate": (
        "optimizer.pt",
        state(lambda found: found["param_groups"][0].update(lr="a")),
        "not a number",
    ),
    "optimizer a part": (
        "optimizer.pt",
        lambda folder: (folder / "optimizer.pt").read_bytes()[:-900],
        "optimizer.pt is not a file",
    ),
    "optimizer flipped": (
        "optimizer.pt",
        lambda folder: repacked(folder / "optimizer.pt", "data.pkl", GARBAGE),
        "is damaged",
    ),
    "scheduler": ("scheduler.pt", lambda folder: torch_bytes({"last_epoch": "x"}), "`last_epoch` a text"),
    "scheduler method": ("scheduler.pt", lambda folder: torch_bytes({"step": 1}), "`step` a whole number"),
    "random": ("rng_state.pth", lambda folder: torch_bytes({"python": 1}), "cannot be resumed from"),
}


@pytest.fixture
def checkpoint(run_folder):
    """The newest checkpoint of a copy of the run, and the config that goes on with it."""
    whole, folder = run_folder
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole.path, copy)
    return RunFolder(copy).checkpoints()[0].path


def refusal(base_run, checkpoint):
    write_manifest(checkpoint, step=6)
    before = sorted(path.name for path in checkpoint.parent.iterdir())
    with pytest.raises(LabError) as caught:
        run(sft_config(base_run, checkpoint.parent.parent, output_dir=str(checkpoint.parent)))
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == before, "nothing is taken away"
    message = str(caught.value)
    assert (
        caught.value.exit_code == 2
        and "\n" not in message
        and message.startswith(f"{checkpoint}: cannot be resumed from: ")
    )
    assert f"`llmlab run {checkpoint.parent} --resume {checkpoint.parent}/checkpoint-4`" in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_is_one_message_and_offers_the_one_before(base_run, checkpoint, case):
    name, content, expected = CASES[case]
    (checkpoint / name).write_bytes(content(checkpoint))
    message = refusal(base_run, checkpoint)
    assert re.search(expected, message), message
    assert "code" not in message or "pickle" in message, "of garbage nobody knows that it would run code"


@pytest.mark.slow
def test_a_sum_of_losses_that_is_a_whole_number_is_resumed_from(base_run, checkpoint):
    state = json.loads((checkpoint / "lab_state.json").read_text())
    (checkpoint / "lab_state.json").write_text(json.dumps({**state, "loss": -1}))
    write_manifest(checkpoint, step=6)
    resumed = run(sft_config(base_run, checkpoint.parent.parent, output_dir=str(checkpoint.parent)))
    assert resumed.model is not None


@pytest.mark.slow
def test_code_in_a_file_of_torch_is_told_and_not_run(base_run, checkpoint, tmp_path):
    (checkpoint / "optimizer.pt").write_bytes(hostile(tmp_path / "ran"))
    assert "holds code (posix.system) that would run when it is read; none of it was run" in refusal(
        base_run, checkpoint
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_older_checkpoint_that_is_offered_is_taken(base_run, checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(GARBAGE)
    refusal(base_run, checkpoint)
    again = sft_config(base_run, checkpoint.parent.parent, output_dir=str(checkpoint.parent))
    assert run(again, resume=str(checkpoint.parent / "checkpoint-4")).model

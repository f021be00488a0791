"""A checkpoint counts when its manifest verifies: whatever byte, file or name changes is noticed."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import RunFolder
from llmlab.runs.manifest import MANIFEST, verify, write_manifest

OUTSIDE = '{"files": {"../outside": {"bytes": 1, "sha256": ""}}}'


def written(folder, content=b"weights"):
    (folder / "part").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "part" / "state.json").write_text("{}")
    write_manifest(folder, step=3)
    return folder


@settings(max_examples=40, deadline=None)
@given(content=st.binary(min_size=1, max_size=200), at=st.integers(0), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(tmp_path_factory, content, at, change):
    folder = written(tmp_path_factory.mktemp("any") / "checkpoint-3", content)
    assert verify(folder) == ""
    damaged = bytearray(content)
    damaged[at % len(content)] ^= change
    (folder / "model.safetensors").write_bytes(damaged)
    assert "model.safetensors has changed" in verify(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "part" / "state.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"weight"),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text(
            '{"files": {"../outside": {"bytes": 1, "sha256": ""}}}'
        ),
        lambda folder: (folder / "optimizer.pt").write_bytes(b"added"),
        lambda folder: (folder / "link").symlink_to(folder.parent),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_damage_is_noticed_and_an_older_checkpoint_is_taken(tmp_path, damage):
    older, newer = (written(tmp_path / f"checkpoint-{step}") for step in (9, 10))
    run = RunFolder(tmp_path)
    assert run.latest_valid_checkpoint()[0].path == newer
    damage(newer)
    assert verify(newer)
    assert run.latest_valid_checkpoint()[0].path == older


def test_checkpoints_are_ordered_by_step_and_other_names_are_none(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", "checkpoint-", "checkpoint-²", "final"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").write_text("a file")
    assert [found.step for found in Checkpoint.all_in(tmp_path)] == [10, 9]


def test_metrics_of_later_steps_go_and_a_line_cut_off_by_a_kill_too(tmp_path):
    run = RunFolder.create(tmp_path / "run", {"config": {}})
    for step in range(5):
        run.log({"step": step, "loss": 1.0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    run.truncate_after(2)
    assert [line["step"] for line in run.metrics()] == [0, 1, 2]

"""Damaged run records: each is one line where it is named, and hides no other run."""

import json
import os
import random
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder, all_runs
from llmlab.runs.record import read_record
from llmlab.runs.verify import verify_run
from llmlab.training.engine.run import run
from llmlab.ui import menu
from tests.fuzzing import GOOD_RECORD, nested, record
from tests.waiting import PATIENCE

FAULTS = {
    "config null-like": ({"config": []}, "`config` is a list, not an object"),
    "config text": ({"config": "sft"}, "`config` is a text, not an object"),
    "kind": ({"config": {"kind": ["sft"]}}, "`config.kind` is a list, not a text"),
    "status": ({"status": ["done"]}, "`status` is a list, not a text"),
    "metrics": ({"metrics": "good"}, "`metrics` is a text, not an object"),
    "a metric": ({"metrics": {"eval_loss": "[/]"}}, "`metrics.eval_loss` is a text, not a number"),
    "large metric": ({"metrics": {"eval_loss": 10**400}}, "`metrics.eval_loss` is too large a number"),
    "result": ({"result": 7}, "`result` is a whole number, not a text"),
    "result outside": ({"result": "../../x"}, "`result` is '../../x', not the name of a folder in it"),
    "parent": ({"parent": 1.5}, "`parent` is a number, not a text"),
    "NUL": ({"parent": "a\0b"}, "`parent` contains a NUL character"),
    "step": ({"step": 1 << 70}, "`step` is too large a number"),
    "started": ({"started": 3}, "`started` is a whole number, not a text"),
    "deep": ({"config": {"kind": "sft", "x": json.loads(nested(100))}}, "is nested more than 50 deep"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(menu, "RUNS", Path("checkpoints"))
    for name in ("good", "bad"):
        (tmp_path / "checkpoints" / name / "best").mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "best" / "config.json").write_text('{"model_type": "llama"}')
        (tmp_path / "checkpoints" / name / "run.json").write_text(json.dumps(GOOD_RECORD))
    return tmp_path / "checkpoints" / "bad"


def looked_at(*arguments):
    """What a command prints; anything but an exit or a message fails."""
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, (SystemExit, LabError)):
        raise result.exception
    return result.output + str(result.exception or "")


@pytest.mark.parametrize("case", FAULTS)
def test_a_damaged_record_is_one_line_that_says_what_is_wrong(folder, case):
    changes, message = FAULTS[case]
    (folder / "run.json").write_text(json.dumps({**GOOD_RECORD, **changes}))
    assert (
        RunFolder(folder).damage == message
        and RunFolder(folder).record == {}
        and RunFolder(folder).status == "damaged"
    )
    out = " ".join(looked_at("runs").split())
    assert "checkpoints/good" in out and "checkpoints/bad" in out and out.count("damaged: ") == 1
    assert message[:12] in looked_at("info", "checkpoints/bad")
    assert message in looked_at("run", "checkpoints/bad")
    assert "last: good (stopped)" in menu.status()


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff", b"1" * 50_000, nested(100_000).encode()])
def test_a_record_that_is_no_object_is_damaged(folder, content):
    (folder / "run.json").write_bytes(content)
    assert RunFolder(folder).damage in ("is not JSON", "is null, not an object")
    assert "damaged" in looked_at("runs")


def test_a_record_that_is_no_file_is_not_opened(folder):
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")
    assert read_record(folder) == ({}, "is a pipe or a device, not a file") and "damaged" in looked_at("runs")
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to("/dev/zero")
    assert read_record(folder) == ({}, "is a pipe or a device, not a file") and "damaged" in looked_at("runs")


@pytest.mark.slow
def test_entries_that_are_null_or_missing_are_fine(folder):
    for name in GOOD_RECORD:
        for other in (
            {**GOOD_RECORD, name: None},
            {key: kept for key, kept in GOOD_RECORD.items() if key != name},
        ):
            (folder / "run.json").write_text(json.dumps(other))
            assert RunFolder(folder).damage == "" and RunFolder(folder).record == other
            assert "damaged" not in looked_at("runs") + looked_at("info", "checkpoints/bad")


@pytest.mark.slow
def test_generated_records_never_end_in_a_traceback(folder):
    rng = random.Random(0)
    for _ in range(60):
        (folder / "run.json").write_bytes(record(rng))
        for arguments in (["runs"], ["info", "checkpoints/bad"], ["run", "checkpoints/bad", "--dry-run"]):
            out = looked_at(*arguments)
            assert len(out) < 10_000
        menu.status()
        assert len(all_runs(Path("checkpoints"))) == 2


@pytest.mark.slow
def test_a_run_that_saves_and_removes_meanwhile_is_not_called_damaged(base_config, tmp_path):
    """Every step a checkpoint is written and one removed, and the best model is replaced,
    while another looks.
    """
    over, looks, false = threading.Event(), [], []

    def look():
        while not over.is_set():
            try:
                faults = verify_run(str(tmp_path / "run"))
            except LabError as error:
                if looks:
                    false.append(str(error))
                continue
            looks.append(faults)
            if any(faults.values()):
                false.append(str(faults))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        changes = dict(
            max_steps=12,
            save_every=1,
            eval_every=1,
            eval_rows=4,
            sample_tokens=0,
            save_total_limit=1,
            batch_size=2,
        )
        run(base_config(tmp_path / "run", **changes))
    finally:
        over.set()
        looking.join(PATIENCE)
    assert looks and not false, f"{len(false)} of {len(looks)}: {false[:3]}"
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    faults = verify_run(str(tmp_path / "run"))
    assert faults[tmp_path / "run" / "best"].startswith("config.json has")

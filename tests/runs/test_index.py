"""The rows of the list of runs: kept ones are those that reading everything gives, whatever was changed."""

import json
import os
import shutil
import time
from contextlib import nullcontext

import pytest

from llmlab.runs import index
from llmlab.runs.folder import RUNS, RunFolder, all_runs
from llmlab.runs.index import run_rows
from llmlab.runs.lock import HOLDER, LOCK, run_lock
from llmlab.runs.tags import tag
from tests.runs.made import make_run


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    for number in range(4):
        make_run(tmp_path / "checkpoints" / f"r{number}", seed=number)
    return tmp_path / "checkpoints"


def at_rest(root):
    """Lets every file be old enough to be kept."""
    then = time.time() - 100
    for file in root.rglob("*.json"):
        os.utime(file, (then, then))


def kept(monkeypatch):
    """Kept rows count although the files were only just written."""
    monkeypatch.setattr(index, "SETTLED", 0.0)


def without_cache(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("LLMLAB_CACHE", str(root.parent / f"empty-{time.time_ns()}"))
        return run_rows(root)


def in_place(path, old, new):
    """Changes bytes of a file: the same file, size and time of change."""
    stat = path.stat()
    content = path.read_bytes()
    assert content.count(old) and len(old) == len(new)
    with open(path, "r+b") as file:
        file.write(content.replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = {
    "a record in place": lambda root: in_place(root / "r1" / "run.json", b'"done"', b'"fail"'),
    "a record by the program": lambda root: RunFolder(root / "r1").update(status="running"),
    "a figure": lambda root: RunFolder(root / "r2").update(metrics={"eval_loss": 0.25}),
    "a tag": lambda root: tag(root / "r3", "best"),
    "a new run": lambda root: make_run(root / "deep" / "er", seed=9),
    "a run in a run": lambda root: make_run(root / "r0" / "inner", seed=8),
    "a run less": lambda root: shutil.rmtree(root / "r0"),
    "another name": lambda root: (root / "r0").rename(root / "new"),
    "a damaged record": lambda root: (root / "r1" / "run.json").write_text("{"),
    "one in the place of another": lambda root: shutil.copytree(root / "r1", root / "r2", dirs_exist_ok=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_at_once(root, monkeypatch, change):
    kept(monkeypatch)
    before = run_rows(root)
    assert run_rows(root) == before == without_cache(root, monkeypatch)
    CHANGES[change](root)
    rows = run_rows(root)
    assert rows != before and rows == without_cache(root, monkeypatch)


def test_rows_are_kept_and_only_of_files_at_rest(root, monkeypatch):
    """What was written a moment ago may be written again within the same tick of the clock."""
    run_rows(root)
    assert not [file for file in (root.parent / "cache").glob("*") if json.loads(file.read_text())["runs"]]
    kept(monkeypatch)
    rows = run_rows(root)
    monkeypatch.setattr(index, "read_record", lambda folder: pytest.fail("was read again"))
    assert run_rows(root) == rows and [run.path for run in all_runs(root)] == [row.path for row in rows]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 1, "runs": {"r1": {"of": [], "row": {"x": 1}}}}', "\0"]
)
def test_a_damaged_cache_is_none(root, monkeypatch, content):
    kept(monkeypatch)
    rows = run_rows(root)
    (file,) = (root.parent / "cache").glob("runs-*.json")
    file.write_text(content)
    assert run_rows(root) == rows


def test_a_cache_that_cannot_be_written_changes_nothing(root, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(root / "r1" / "run.json" / "no folder"))
    assert [row.path.name for row in run_rows(root)] == ["r3", "r2", "r1", "r0"]


@pytest.mark.parametrize(
    "host, held, status", [(None, False, "killed"), (None, True, "running"), ("far", False, "running")]
)
def test_a_run_whose_process_is_gone_is_not_called_running(tmp_path, monkeypatch, host, held, status):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "a"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "running", "started": "a"}))
    with run_lock(folder) if held else nullcontext():
        (folder / LOCK).touch()
        if host:
            (folder / HOLDER).write_text(json.dumps({"pid": 1, "host": host}))
        assert [row.status for row in run_rows(RUNS)] == [status]
        assert RunFolder(folder).status == status

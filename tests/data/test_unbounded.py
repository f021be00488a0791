"""Files that their readers abort or hang on: refused with one short message before a reader sees them."""

import os

import pytest

from llmlab.config import SourceConfig
from llmlab.data.faults import MAX_LINE, MAX_UNPACKED, unbounded
from llmlab.data.sources import load_rows
from llmlab.errors import LabError
from tests.fuzzing import dataset_files, nested

FILES = dataset_files()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_what_a_reader_would_abort_on_is_refused_with_file_and_row(tmp_path, name, streaming):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError) as caught:
        load_rows(SourceConfig(name=str(tmp_path / name)), streaming=streaming)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}") and len(str(caught.value)) < 500
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.parquet"])
def test_only_regular_files_are_opened(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/zero")
    os.mkfifo(tmp_path / f"pipe-{name}")
    for path in (tmp_path / name, tmp_path / f"pipe-{name}", "/dev/zero", "/dev/urandom"):
        with pytest.raises(LabError, match="is a pipe or a device, not a file"):
            load_rows(SourceConfig(name=str(path)))
    with pytest.raises(LabError, match="no readable files in this folder"):
        load_rows(SourceConfig(name=str(tmp_path)))


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setattr("llmlab.data.faults.MAX_UNPACKED", MAX_UNPACKED >> 6)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((b"a" * 1000 + b"\n") * 30_000))
    assert "more than 300 times its size" in str(unbounded(tmp_path / "a.txt.gz", "text"))


def test_large_and_deep_files_within_the_bounds_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "' + "a" * (MAX_LINE // 10) + '"}\n{"text": "b"}\n')
    (tmp_path / "b.json").write_text(
        "[" + ",".join(['{"text": "b"}'] * 1_000_000) + "]"
    )  # one line, above the bound
    (tmp_path / "c.jsonl").write_text('{"text": "c", "more": ' + nested(40) + "}\n")
    assert len(load_rows(SourceConfig(name=str(tmp_path / "a.jsonl")))) == 2
    assert unbounded(tmp_path / "b.json", "json") is None
    assert len(load_rows(SourceConfig(name=str(tmp_path / "c.jsonl")))) == 1

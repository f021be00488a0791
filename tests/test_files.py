"""Reading is bounded: whatever a name stands for, it ends with data or with one reason."""

import os

import pytest

from llmlab.config import load_config
from llmlab.errors import LabError
from llmlab.files import BadFile, read_json, read_object, written_whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200 + b"]" * 200, "nested more than 100 deep"),
        (b"[" * 10**6, "nested"),
        (b"9" * 5000, "too many digits"),
        (b'{"a": }', "line 1, column 7"),
        (b"[1]" + b" " * 10**7, "more than 10,000,000 bytes"),
        (b"", "line 1, column 1"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b"[1]", "holds no JSON object"),
    ],
)
def test_content(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        read_object(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}


@pytest.mark.parametrize("name", ["pipe", "folder", "device", "circle", "no such", "a" * 300])
def test_what_is_no_file_is_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    os.mkdir(tmp_path / "folder")
    os.symlink("/dev/zero", tmp_path / "device")
    os.symlink("circle", tmp_path / "circle")
    with pytest.raises((BadFile, OSError)):
        read_json(tmp_path / name)
    with pytest.raises(LabError):
        load_config(tmp_path / name)


def test_a_file_is_written_whole_or_not_at_all_and_by_one(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with pytest.raises(LabError, match="by another process"), written_whole(path) as file:
        file.write("first")
        with written_whole(path):
            pass
    assert not list(path.parent.iterdir())
    with written_whole(path) as file:
        file.write("whole")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write("half")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_text() == "whole" and [each.name for each in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(LabError, match="cannot be written"), written_whole(path / "b.txt"):
        pass

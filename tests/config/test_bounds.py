"""Upper bounds of options, and what is named as a config and is none."""

import json
import os

import pytest
from typer.testing import CliRunner

from llmlab.cli import app, parse_changes
from llmlab.config import KINDS, PretrainConfig, load_config
from llmlab.config.base import members, validate, validate_option
from llmlab.errors import LabError
from llmlab.training.engine.reporter import SILENT
from llmlab.training.engine.resume import resolve_resume
from tests.fuzzing import EXCESSIVE, nested


@pytest.mark.parametrize("name", EXCESSIVE)
def test_a_size_that_no_machine_has_is_refused_by_name(name):
    with pytest.raises(LabError) as caught:
        validate(PretrainConfig, {"kind": "pretrain", name: EXCESSIVE[name]})
    assert str(caught.value).startswith(f"`{name}` ") and "\n" not in str(caught.value)


def test_every_whole_number_has_an_upper_bound():
    open_ended = [
        f"{kind}.{name}"
        for kind, cls in KINDS.items()
        for name, field in cls.model_fields.items()
        if field.annotation in (int, int | None)
        and not any(getattr(rule, "le", None) or getattr(rule, "lt", None) for rule in field.metadata)
    ]
    assert open_ended == []


@pytest.mark.parametrize("text", ["1" * 50_000, nested(100_000), "NaN", "1e999"])
def test_values_that_json_cannot_hold_are_refused_as_texts_or_numbers(text, tmp_path):
    with pytest.raises(LabError, match="`max_steps`"):
        validate(PretrainConfig, {"kind": "pretrain", **parse_changes([f"max_steps={text}"])})
    (tmp_path / "a.json").write_text(f'{{"kind": "pretrain", "max_steps": {text}}}')
    with pytest.raises(LabError):
        load_config(tmp_path / "a.json")


def test_pipes_devices_and_folders_are_no_configs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/urandom"):
        with pytest.raises(LabError, match="is a pipe or a device, not a file"):
            load_config(path)
    for path in (tmp_path, "/", "a\0b", "a" * 300):
        with pytest.raises(LabError):
            load_config(path)


@pytest.mark.parametrize("place", ["file", "file/below", "/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    config = PretrainConfig(output_dir=place)
    with (
        pytest.raises(LabError, match=r"is a file, not a folder|cannot be created"),
        resolve_resume(config, "auto", SILENT),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).read_text() == "kept"


@pytest.mark.parametrize(
    "text, reason",
    [("a\0b", "contains a NUL character"), ("a\ud800b", "is not UTF-8 text: it holds half of a character")],
)
def test_what_no_file_can_hold_is_refused_by_name(text, reason, tmp_path):
    names = {
        kind: [name for name, field in cls.model_fields.items() if str in members(field.annotation)]
        for kind, cls in KINDS.items()
    }
    assert sum(map(len, names.values())) > 20
    for kind, fields in names.items():
        for name in {*fields, text}:
            with pytest.raises(LabError) as caught:
                validate(KINDS[kind], {"kind": kind, name: text})
            assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(LabError, match=f"`datasets.name` {reason}"):
        validate(PretrainConfig, {"kind": "pretrain", "datasets": [{"name": text}]})
    with pytest.raises(LabError, match=f"`init_from` {reason}"):
        validate_option(PretrainConfig, "init_from", text)
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"kind": "pretrain", "name": text}))
    with pytest.raises(LabError, match=f"`name` {reason}"):
        load_config(file)


@pytest.mark.parametrize("name", ["nowhere", "a\udcffb", "c.json"])
def test_a_cache_folder_that_is_named_has_to_be_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text("{}")
    for command in ("list", "verify"):
        result = CliRunner().invoke(app, ["cache", command, "--cache-dir", name])
        assert isinstance(result.exception, LabError) and "there is no such folder" in str(result.exception)
    assert CliRunner().invoke(app, ["cache", "list"]).exit_code == 0

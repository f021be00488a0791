"""The program as a person runs it: a process, its exit code, its one line."""

import io
import json
import os
import subprocess
import sys

import pytest

from llmlab.__main__ import main
from llmlab.config import save_config
from tests.conftest import llmlab
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.slow  # trains


def refused(result, expected):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and expected in lines[0], result.stderr


@pytest.fixture
def place(tmp_path, base_config):
    save_config(base_config(tmp_path / "run"), tmp_path / "base.json")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    (tmp_path / "half.json").write_text((tmp_path / "base.json").read_text()[:200])
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["new", "model", "--yes", "--set", "d_modle=3"],
            "unknown option `d_modle`: did you mean `d_model`?",
        ),
        (["new", "model", "--yes", "--set", "n_heads=0"], "`n_heads` 0 must be at least 1"),
        (["new", "model", "--yes", "--preset", "tinny"], "did you mean tiny?"),
        (["new", "modl", "--yes"], "did you mean 'model'?"),
        (["new", "model"], "stdin is not a terminal"),
        (["new", "model", "--yes", "-o", "/proc/none/x.json"], "cannot be written"),
        (["run", "half.json"], "not valid JSON"),
        (
            ["new", "dual_head", "--yes", "--set", "policy_checkpoint=x"],
            "the option for the starting model is `backbone`",
        ),
        (
            ["run", "base.json", "--resume", "latest"],
            "`--resume auto`, the default, uses the newest checkpoint",
        ),
        (["run", "none.json"], "no such config"),
        (["run", "folder"], "holds no run"),
        (["run", "base.json", "--set", 'datasets=["empty.txt"]'], "is empty"),
        (["run", "base.json", "--set", 'datasets=["binary.txt"]'], "is a binary file"),
        (["run", "base.json", "--set", 'datasets=["some/dataset"]'], "could not be downloaded from the hub"),
        (["run", "base.json", "--set", "model.vocab_size=300"], "is smaller than the 512 tokens"),
        (
            ["run", "base.json", "--set", 'model.tokenizer_name="Qwen/Qwen2.5-0.5B"'],
            "could not be downloaded from the hub",
        ),
        (["run", "base.json", "--set", 'output_dir="/proc/none"'], "cannot be created"),
        (["run", "base.json", "--set", 'device="cuda"'], "is not on this machine"),
        (["run", "base.json", "--set", 'report_to=["trackio"]'], "is not installed"),
        (["chat", "folder"], "is not a checkpoint"),
        (["chat", "org/model"], "could not be downloaded from the hub"),
        (["generate", "./none", "--prompt", "x"], "no such checkpoint"),
        (["info", "half.json"], "is a file, not a checkpoint"),
        (["runs", "verify", "none"], "no such run"),
        (["runs", "verify"], "Missing argument 'run'"),
        (["quickstart", "-o", "."], "is not empty"),
        (["tokenizer", "empty.txt"], "is empty"),
        (["tokenizer", "llmlab:moby-dick", "-o", "/proc/none/x", "--vocab-size", "300"], "cannot be written"),
        (["tokenizer", "llmlab:moby-dick", "-o", "."], "already exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(place, arguments, expected, monkeypatch, capfd):
    """In this process, which has torch loaded already; the next test tries processes of their own."""
    before = sorted(str(p) for p in place.rglob("*"))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["llmlab", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main()
    output, errors = capfd.readouterr()
    refused(subprocess.CompletedProcess(arguments, ended.value.code, output, errors), expected)
    assert sorted(str(p) for p in place.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["new", "model", "--yes", "--set", "d_modle=3"],
            "unknown option `d_modle`: did you mean `d_model`?",
        ),
        (["run", "half.json"], "is not valid JSON"),
        (["run", "base.json", "--set", 'datasets=["empty.txt"]'], "is empty"),
    ],
)
def test_bad_input_of_a_process(place, arguments, expected):
    before = sorted(str(p) for p in place.rglob("*"))
    refused(llmlab(*arguments, cwd=place), expected)
    assert sorted(str(p) for p in place.rglob("*")) == before


def test_without_a_terminal_it_prints_help(tmp_path):
    result = llmlab(cwd=tmp_path)
    assert result.returncode == 2 and "quickstart" in result.stdout


def test_new_check_schema(tmp_path):
    made = llmlab(
        "new",
        "model",
        "--preset",
        "small",
        "--set",
        "n_layers=3",
        "--set",
        "tokenizer_name=byte",
        "--yes",
        "-o",
        "m.json",
        cwd=tmp_path,
    )
    assert made.returncode == 0 and made.stdout.strip() == "m.json"
    assert json.loads((tmp_path / "m.json").read_text())["n_layers"] == 3
    checked = llmlab("check", "m.json", cwd=tmp_path)
    assert "parameters" in checked.stdout and checked.returncode == 0
    llmlab("new", "pretrain", "--yes", "--set", "model=m.json", "-o", "p.json", cwd=tmp_path)
    plan = llmlab("run", "p.json", "--dry-run", cwd=tmp_path).stdout
    assert "1 x 64 x 1 = 64" in plan and "memory" in plan
    assert json.loads(llmlab("schema", "sft", cwd=tmp_path).stdout)["properties"]["loss_on"]["enum"] == [
        "assistant",
        "all",
    ]


def test_run_stop_resume_generate_info(place):
    """A run stopped by Ctrl+C goes on to the same end as one that was not."""
    import signal

    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    settings = ["--set", "max_steps=60", "--set", "save_every=50"]
    whole = llmlab("run", "base.json", "--json", *settings, "--set", 'output_dir="whole"', cwd=place)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "run", "base.json", *settings],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = place / "run" / "metrics.jsonl"
    until(lambda: (metrics.exists() and '"step": 10,' in metrics.read_text()) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert (
        "to resume: " in out and json.loads((place / "run" / "run.json").read_text())["status"] == "stopped"
    )
    resumed = llmlab("run", "run", "--json", cwd=place)
    assert resumed.returncode == 0 and "resuming from" in resumed.stderr
    ends = [json.loads(r.stdout)["metrics"] for r in (whole, resumed)]
    assert ends[0] == ends[1]

    said = llmlab(
        "generate",
        "run",
        "--prompt",
        "Call me",
        "--set",
        "temperature=0",
        "--set",
        "max_new_tokens=8",
        cwd=place,
    )
    piped = llmlab(
        "chat",
        "run",
        "--set",
        "temperature=0",
        "--set",
        "max_new_tokens=8",
        cwd=place,
        stdin="Call me\n\nCall me\n",
    )
    assert said.returncode == 0 and piped.stdout.count(said.stdout.strip()) == 2
    info = llmlab("info", "run", cwd=place).stdout
    assert "pretrain, 60 steps, done" in info and "verified" in info
    assert llmlab("runs", "verify", "run", cwd=place).returncode == 0
    (place / "run" / "best" / "model.safetensors").write_bytes(b"x")
    assert llmlab("runs", "verify", "run", cwd=place).returncode == 2

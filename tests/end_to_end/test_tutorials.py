"""The whole pipeline, small: every figure is there, every config replays. Then the tutorials, which go on
from it, command by command in the same folder; with less training than they say (`python
tests/end_to_end/tutorials.py | bash -eux` does all of it).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.config import load_config
from tests.conftest import llmlab
from tests.end_to_end.tutorials import FOLDER, PAGES, steps

pytestmark = pytest.mark.slow  # trains

BRIEF = ["--set", "max_steps=2", "--set", "eval_every=2"]
SMALL = [*BRIEF, "--set", "batch_size=16", "--set", "mini_batch_size=16"]  # of answers, which take long


def less(arguments):
    """A command with less work in it."""
    if arguments[:2] == ["runs", "again"]:
        return [*arguments, "--set", "max_steps=2"]
    if arguments[0] != "run":
        return arguments
    has_share = arguments[1] == "align.json"  # of the steps, as warm-up
    warmup = [] if has_share else ["--set", "warmup_steps=0"]
    answers = SMALL if arguments[1] in ("sentences.json", "group8.json") else BRIEF
    return [*arguments, *answers, *warmup]


ANSWERS = ("completion", "answer", "chosen")


def right_answer(question):
    """Read from the question alone, without the code that made it."""
    words = question.rstrip(".?").replace(",", "").split()
    numbers = [int(word) for word in words if word.isdigit()]
    match words[0]:
        case "Add":
            return str(sum(numbers))
        case "Subtract":
            return str(numbers[1] - numbers[0])
        case "Copy:":
            return " ".join(words[1:])
        case "Reverse:":
            return " ".join(words[:0:-1])
        case "Count:":
            return str(len(words) - 1)
        case "Last":
            return words[-1]
    return str(numbers[0] + 1) if "after" in words else str(max(numbers))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which a quickstart was made."""
    folder = tmp_path_factory.mktemp("tutorials")
    done = llmlab("quickstart", "--minutes", "0.05", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def test_quickstart_and_a_replay(place):
    said = (place / "said").read_text()
    record = json.loads((place / "checkpoints/quickstart/quickstart.json").read_text())
    figures = {(row["stage"], row["figure"]): row for row in record["figures"]}
    assert figures["base", "bits per byte"]["after"] < figures["base", "bits per byte"]["before"]
    exact = [figures[stage, "exact match"] for stage in ("SFT", "GRPO", "DPO")]
    assert (
        exact[0]["after"] == exact[1]["before"] == exact[2]["before"]
    )  # both kinds of alignment start from the SFT model
    assert ("DPO", "preference accuracy") in figures
    assert all(
        figures[stage, "right in either style"]["after"] >= figures[stage, "exact match"]["after"]
        for stage in ("SFT", "GRPO", "DPO")
    )
    assert "llmlab chat checkpoints/quickstart/grpo" in said and "95 % of such shares" in said
    assert "every other one as a sentence" in said  # what the SFT data is made of is said
    for kind in ("base", "sft", "grpo", "dpo"):
        load_config(place / f"checkpoints/quickstart/{kind}.json")
    held_out = {
        json.loads(line)["prompt"]
        for line in (place / "checkpoints/quickstart/test.jsonl").read_text().splitlines()
    }
    sentences = 0
    for name in ("sft", "prompts", "dpo"):  # every answer is right, no held-out question among them
        rows = [
            json.loads(line)
            for line in (place / f"checkpoints/quickstart/{name}.jsonl").read_text().splitlines()
        ]
        assert rows and not held_out & {row["prompt"] for row in rows}
        for row in rows:
            bare, given = right_answer(row["prompt"]), next(row[key] for key in ANSWERS if key in row)
            assert given == bare or (name == "sft" and given == f"The answer is {bare}.")
            sentences += given != bare
        assert name != "sft" or sentences == len(rows) / 2
    replay = llmlab("run", "checkpoints/quickstart/base.json", "--json", cwd=place)
    assert replay.returncode == 0, replay.stderr
    again = json.loads(replay.stdout)
    assert again["run"] == "checkpoints/quickstart/base-2"
    assert again["metrics"]["eval_bits_per_byte"] == figures["base", "bits per byte"]["after"]
    answer = llmlab(
        "chat", "checkpoints/quickstart/grpo", "--set", "max_new_tokens=5", cwd=place, stdin="Add 1 and 2.\n"
    )
    assert answer.returncode == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_a_reader_can_follow_the_page(place, page, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))  # where a reward of one's own is found
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for kind, words in steps(page):
        if kind == "bash":
            done = subprocess.run(
                ["bash", "-euc", words[0]], capture_output=True, text=True, env={**os.environ, "PATH": path}
            )
            assert done.returncode == 0, (words[0], done.stderr)
        elif words != ["quickstart"]:  # it was made
            result = CliRunner().invoke(app, less(words))
            assert result.exit_code == 0, (words, result.output, result.exception)


def test_every_tutorial_is_run_and_stands_in_the_site():
    assert sorted(PAGES) == sorted(page.stem for page in FOLDER.glob("*.md"))
    site = yaml.safe_load((FOLDER.parent / "_toc.yml").read_text())
    names = [entry["file"] for part in site["subtrees"] for entry in part["entries"]]
    assert [f"tutorials/{page}" for page in PAGES] == names[: len(PAGES)]
    pages = {str(page.relative_to(FOLDER.parent).with_suffix("")) for page in FOLDER.parent.rglob("*.md")}
    assert sorted(names) == sorted(pages - {"index"})


def test_the_site_is_made_without_a_warning(tmp_path):
    """Every link between the pages leads somewhere."""
    docs = ["-q", "-W", "--keep-going", "-b", "html", str(FOLDER.parent), str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "sphinx", *docs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Your first model" in (tmp_path / "index.html").read_text()

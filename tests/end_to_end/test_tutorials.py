"""The tutorials are run, command by command, one page after the other in one folder; with less training than
they say (`python tests/end_to_end/tutorials.py | bash -eux` does all of it).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from llmlab.cli import app
from tests.end_to_end.tutorials import FOLDER, PAGES, steps

pytestmark = pytest.mark.slow  # trains

BRIEF = ["--set", "max_steps=2", "--set", "eval_every=2"]
SMALL = [*BRIEF, "--set", "batch_size=16", "--set", "mini_batch_size=16"]  # of answers, which take long


def less(arguments):
    """A command with less work in it."""
    if arguments[0] == "quickstart":
        return [*arguments, "--minutes", "0.05"]
    if arguments[:2] == ["runs", "again"]:
        return [*arguments, "--set", "max_steps=2"]
    if arguments[0] != "run":
        return arguments
    warmup = (
        [] if arguments[1] == "align.json" else ["--set", "warmup_steps=0"]
    )  # it says a share of the steps
    answers = SMALL if arguments[1] in ("sentences.json", "group8.json") else BRIEF
    return [*arguments, *answers, *warmup]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorials")


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
        else:
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

"""The commands of README and docs are commands of the program; the quick ones run."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.engines import PAGE, RESULTS, Cell, page_with
from llmlab.cli import app, parse_changes
from llmlab.config.base import option_info
from llmlab.config.chat import ChatSettings
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.loader import KINDS, kind_class
from llmlab.config.slurm import SlurmConfig
from llmlab.config.sources import SourceConfig
from llmlab.data.packed_text import document_texts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "screens.md"]  # what is drawn, not what is typed
GROUP = typer.main.get_command(app)


def fenced(text):
    """Lines of code blocks that are no diffs and no screens, comments left out."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if language != "diff":
            yield from (line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())


def commands():
    """(page, command) of every line of a code block that is one."""
    for page in PAGES:
        for line in fenced(page.read_text()):
            for part in line.split(" && "):
                if re.match(r"(\.venv/bin/)?llmlab( |$)|make |python benchmarks/", part):
                    yield page.name, part


def mentions():
    """(page, command) of every command between backticks, as `llmlab run CONFIG [--dry-run]`."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for code in re.findall(r"`((?:llmlab |make |python benchmarks/)[^`]*)`", text):
            yield page.name, code.replace("\\|", "|")


def find(words):
    """The command of the program that words begin with, and its arguments."""
    command, context = GROUP, click.Context(GROUP)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words, context


def check_changes(path, words):
    """The names of `--set` are options of what they change, where the line says what that is."""
    changes = parse_changes([words[i + 1] for i, word in enumerate(words) if word == "--set"])
    classes = {
        "data": SourceConfig,
        "evaluate": SourceConfig,
        "chat": ChatSettings,
        "generate": ChatSettings,
        "slurm": SlurmConfig,
    }
    cls = kind_class(words[0]) if path == "new" else classes.get(path)
    known = [cls] if cls else [*KINDS.values()]
    known += [EvaluationConfig] if path == "evaluate" else []
    names = {n for c in known for n, f in c.model_fields.items() for n in (n, *option_info(f).aliases)}
    # what the page itself adds
    names |= {"min_p"}
    assert changes.keys() <= names, changes.keys() - names


@pytest.mark.parametrize("page, line", sorted(set(commands())))
def test_commands_in_code_blocks_are_read_by_the_program(page, line):
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        command, arguments, context = find(words[1:])
        command.make_context(command.name, list(arguments), parent=context)
        if words[1:]:
            check_changes(words[1], arguments)


def test_commands_in_the_text_and_their_options_exist():
    found = sorted(set(mentions()))
    assert len(found) > 30
    for page, code in found:
        words = code.replace("[", " ").replace("]", " ").split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), (page, code)
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), (page, code)
        elif words[1].startswith("-"):
            assert words[1] in {name for parameter in GROUP.params for name in parameter.opts}, (page, code)
        elif words[1] in GROUP.commands:
            command, _, _ = find(
                words[1:3] if words[1] in ("data", "cache", "runs", "config", "preferences") else words[1:2]
            )
            names = {name for parameter in command.params for name in parameter.opts}
            options = {word for word in words if re.match(r"--?\w", word)}
            assert options <= names | {"-h", "--help"}, (page, code, options - names)
        else:
            raise AssertionError(f"{page}: {code}: there is no command {words[1]!r}")


@pytest.mark.slow
def test_the_readmes_lines_run_one_after_the_other(base_run, tmp_path, monkeypatch):
    """In an empty folder; `run` shows its plan and checks all that it would read, `evaluate` is left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytexts").mkdir()
    texts = document_texts(SourceConfig(name="llmlab:moby-dick"))
    (tmp_path / "mytexts" / "a.txt").write_text("\n\n".join(texts))
    lines = [line for page, line in dict.fromkeys(commands()) if page == "README.md"]
    lines = [line for line in lines if re.match(r"llmlab (tokenizer|new|check|run|data)", line)]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line.replace("MODEL", str(base_run.folder)))[1:]
        more = ["--dry-run"] if words[0] == "run" else []
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert json.loads((tmp_path / "base.json").read_text())["optimizer"] == "muon"


def test_the_table_of_engines_is_that_of_the_measured_results():
    cells = [Cell(**cell) for cell in json.loads(RESULTS.read_text())]
    page = PAGE.read_text()
    assert page_with(cells, page) == page
    assert not [cell for cell in cells if cell.verdict in ("fails", "differs")]

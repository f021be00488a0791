"""Every command shows two examples, and each of them is read by the program."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.cli.examples import EXAMPLES
from tests.test_docs import check_changes, find

GROUP = typer.main.get_command(app)


def commands(command, path=()):
    """(path, command) of everything that can be called."""
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*path, name))
        else:
            yield " ".join((*path, name)), inner


def test_every_command_has_two_examples_and_no_example_lacks_its_command():
    assert dict(commands(GROUP)).keys() == EXAMPLES.keys()
    assert all(len(set(lines)) == 2 for lines in EXAMPLES.values())


@pytest.mark.parametrize("name, line", [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_an_example_is_read_by_the_program(name, line):
    words = shlex.split(line.split(" > ")[0])
    assert words[0] == "llmlab" and " ".join(words[1:]).startswith(name) and len(line) < 80
    command, arguments, context = find(words[1:])
    command.make_context(command.name, list(arguments), parent=context)
    check_changes(words[1], arguments)


def test_help_shows_them():
    shown = CliRunner().invoke(app, ["runs", "again", "--help"], env={"COLUMNS": "100"}).output
    assert all(line in shown for line in EXAMPLES["runs again"])

"""Text from outside on the screen: brackets are shown, escape sequences are not obeyed,
long messages are cut.
"""

import io
import json
import sys

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llmlab.__main__ import main
from llmlab.errors import LabError
from llmlab.readable import bounded, listed, shortened, visible
from llmlab.screen import LabConsole, styled

ESCAPE = "\x1b]0;owned\x1b\\\x1b[2J"
NAMES = [
    "[/]",
    "[draft]x",
    "[bold]y[/bold]",
    ESCAPE + "z",
    "a\x9bb",
    "\u202efdp",
    "-",
    "' '",
    "|",
    ":smile:",
    "\\",
    "[red\\",
]


def printed(renderable, **options):
    out = io.StringIO()
    LabConsole(file=out, width=60, **options).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_print_shows_a_text_as_it_is(name):
    table = Table("head", name, title=name)
    table.add_row(name, Text(name))
    shown = visible(name)
    for renderable, times in (
        (name, 1),
        (Text(name), 1),
        (table, 4),
        (Panel(Text(name), title=Text(name)), 2),
        (styled("[bold]{}[/bold] {}", name, name), 2),
    ):
        out = printed(renderable)
        assert out.count(shown) == times, out
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)
    assert shown in printed(styled("[bold]{}[/bold]", name), force_terminal=True, color_system="standard")


def test_symbols_stand_where_the_characters_were():
    text = "".join(map(chr, range(0x250))) + "\udc80\ud800é\u2067"
    assert len(visible(text)) == len(text) and visible(text).encode()
    assert visible("a\tb\nc\x1bd\x7f") == "a\tb\nc␛d␡" and visible("plain é") == "plain é"


def test_long_messages_are_shortened():
    text = shortened("a" * 10_000 + "end", 100)
    assert len(text) < 140 and text.endswith("end") and "9,903 characters" in text
    assert listed(range(1000), 3) == "0, 1, 2 and 997 more" and listed("ab") == "a, b"
    assert bounded("one\ntwo") == "one\ntwo" and len(bounded("x\n" * 100_000)) < 200
    error = LabError("w" * 100_000, where="p" * 100_000, remedy="r" * 100_000)
    assert len(str(error.at("f"))) < 10_000


@pytest.fixture
def program(tmp_path, monkeypatch, capfd):
    """The program as it is called in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["llmlab", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.mark.parametrize("name", [*NAMES, "a" * 300, "a/" * 3000, "\udc80x", " ", "~nobody/x"])
@pytest.mark.parametrize(
    "command",
    [
        "info {}",
        "chat {}",
        "run {}",
        "check {}",
        "runs verify {}",
        "data catalog {}",
        "data inspect {}",
        "data clean {} -o new.jsonl",
        "data overlap {} {}",
        "tokenizer {} -o new",
        "cache list --cache-dir {}",
        "runs {}",
        "{}",
        "merge {}",
    ],
)
def test_any_name_is_one_clear_line(program, command, name, tmp_path):
    arguments = [part.replace("{}", name) for part in command.split()]
    if command == "{}" and name == "-":
        return
    code, out, err = program(*arguments)
    assert code in (0, 2) and "Traceback" not in err and len(err.splitlines()) <= 1
    assert (err.startswith("error: ") and len(err) < 10_000) if code else not err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("name", ["[draft]x", "[/]y", "\x1b[2Jz", "a|b"])
def test_runs_of_any_name_are_listed(program, tmp_path, name):
    folder = tmp_path / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"config": {"kind": "sft"}, "status": "[/]", "step": 3, "parent": name})
    )
    (folder / "best").mkdir()
    (folder / "best" / "config.json").write_text(
        json.dumps({"model_type": "[/]\x1b]0;x\x07", "architectures": ["x"]})
    )
    code, out, err = program("runs")
    assert code == 0 and not err and visible(name) in out and "[/]" in out and "\x1b" not in out
    code, out, err = program("info", f"checkpoints/{name}")
    assert code == 0 and not err and "[/]␛]0;x" in out.replace("\n", "") and "\x1b" not in out

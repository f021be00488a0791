"""Makes docs/screens.md and docs/images/screens: the lab's screens as text and as pictures, taken from a real
terminal.

python tests/end_to_end/screens.py FOLDER     # a folder in which a quickstart was made
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text
from terminal import CLEAR, CTRL_C, CTRL_D, ENTER, Terminal

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURES = DOCS / "screens.md", DOCS / "images" / "screens"


def color(name: str) -> str:
    """Returns a colour of pyte's as rich names it."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    name = name.replace("brown", "yellow")
    return f"bright_{name.removeprefix('bright')}" if name.startswith("bright") else name


def style_of(sign: pyte.screens.Char) -> str:
    """Returns how a sign looks, in rich's words."""
    how = [name for name in ("bold", "reverse") if getattr(sign, name)]
    return " ".join([*how, color(sign.fg), "on", color(sign.bg)])


def picture(screen: pyte.Screen, title: str) -> str:
    """Returns a screen as an SVG picture that loads nothing."""
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    filled = [row for row in range(screen.lines) if screen.display[row].strip()]
    for row in range(max(filled, default=0) + 1):
        line = Text(end="")
        signs = [screen.buffer[row][column] for column in range(screen.columns)]
        for style, same in itertools.groupby(signs, key=style_of):
            line.append("".join(sign.data for sign in same), style)
        console.print(line, no_wrap=True)
    drawn = console.export_svg(title=title)
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.S)


class Book:
    """The screens taken so far.

    Args:
        folder: in which the lab runs; its place is left out of what is kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.page = [
            "# Screens",
            "",
            "Taken from a terminal by `python tests/end_to_end/screens.py FOLDER`, as pictures and as text.",
            "",
        ]
        PICTURES.mkdir(parents=True, exist_ok=True)

    def open(self, *arguments: str, rows: int = 24, columns: int = 80) -> Terminal:
        """Starts the lab in a terminal."""
        return Terminal(
            *arguments, folder=self.folder, columns=columns, rows=rows, environment=dict(os.environ)
        )

    def take(self, term: Terminal, name: str, title: str) -> None:
        """Keeps a screen as it stands."""
        drawn = picture(term.screen, title.replace("`", ""))
        (PICTURES / f"{name}.svg").write_text(drawn.replace(str(self.folder), "."))
        text = term.text().strip("\n").replace(str(self.folder), ".")
        self.page += [f"## {title}", "", f"![{title}](images/screens/{name}.svg)", "", "```", text, "```", ""]

    def close(self) -> None:
        """Writes the page."""
        PAGE.write_text("\n".join(self.page).rstrip() + "\n")


def main() -> None:
    book = Book(Path(sys.argv[1]).resolve())
    term = book.open()
    term.see("0\\) Quit")
    book.take(term, "menu", "The menu")
    term.send(CTRL_C)

    term = book.open("new", "model", "--preset", "small", "-o", "screens.json")
    term.see("tokenizer_name")
    term.send(ENTER, ENTER, CLEAR, "768")
    book.take(term, "form", "A form: the figures below the question change with every key")
    term.send(ENTER, "?")
    book.take(term, "explained", "`?` explains")
    term.close()

    sft = {"policy_checkpoint": "checkpoints/quickstart/base", "max_length": "128"}
    sft["datasets"] = '["checkpoints/quickstart/sft.jsonl"]'
    changes = [word for name, value in sft.items() for word in ("--set", f"{name}={value}")]
    term = book.open("new", "sft", "-o", "screens.json", *changes, rows=60)
    term.see(r"\? name")
    term.send("screens", ENTER)
    values = {"max_steps": "400", "learning_rate": "0.002", "batch_size": "8"}
    term.fill({**values, "gradient_accumulation_steps": "1", "eval_every": "20"})
    book.take(term, "review", "The review, and the plan of a run")
    term.send(ENTER)
    term.see("screens.json")
    term.close()

    for name, title, rows, arguments in (
        (
            "fit",
            "`llmlab fit`: what can be trained on a card",
            40,
            ("fit", "Qwen/Qwen2.5-7B", "--gpu", "RTX 4090"),
        ),
        ("check", "`llmlab check`", 50, ("check", "screens.json")),
    ):
        term = book.open(*arguments, rows=rows, columns=100)
        term.child.wait()
        term.read()
        book.take(term, name, title)

    term = book.open("run", "screens.json", rows=40, columns=120)
    term.see(r"sample at step [2-9]0")
    term.see(r"step ([4-9]\d|\d\d\d) of")
    book.take(term, "run", "A run")
    term.send("s")
    term.see("to resume: ")
    term.close()

    term = book.open("runs", "show", "checkpoints/quickstart/grpo", rows=60, columns=100)
    term.child.wait()
    term.read()
    book.take(term, "show", "`llmlab runs show`: what happened")

    term = book.open()
    term.see("0\\) Quit")
    term.send("s", ENTER)
    term.see("Which one")
    book.take(term, "saved", "Saved configs and runs")
    term.send(CTRL_C, CTRL_C)
    term.close()

    term = book.open("chat", "checkpoints/quickstart/grpo")
    term.see("you")
    term.send("/set temperature 0", ENTER)
    term.send("Add 3 and 4.", ENTER)
    term.read(1.5)
    term.send("/why", ENTER)
    term.read(1.5)
    book.take(term, "chat", "The chat")
    term.send(CTRL_D)
    book.close()
    (book.folder / "screens.json").unlink(missing_ok=True)
    print(PAGE)


if __name__ == "__main__":
    main()

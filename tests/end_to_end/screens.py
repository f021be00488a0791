"""Makes docs/screens.md: the lab's screens as text, taken from a real terminal.

python tests/end_to_end/screens.py FOLDER     # a folder in which a quickstart was made
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from terminal import CTRL_C, CTRL_D, ENTER, Terminal

DOCS = Path(__file__).parents[2] / "docs" / "screens.md"


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    shots: list[tuple[str, str]] = []

    def opened(*arguments: str, rows: int = 24) -> Terminal:
        return Terminal(*arguments, folder=folder, columns=80, rows=rows, environment=dict(os.environ))

    term = opened()
    shots.append(("The menu", term.see("0\\) Quit")))
    term.send(CTRL_C)

    term = opened("new", "model", "--preset", "small", "-o", "screens.json")
    term.see("tokenizer_name")
    term.send(ENTER, ENTER, "\x15", "768")
    shots.append(("A form: the figures below the question change with every key", term.text()))
    term.send(ENTER, "?")
    shots.append(("`?` explains", term.text()))
    term.close()

    term = opened(
        "new",
        "sft",
        "-o",
        "screens.json",
        "--set",
        "policy_checkpoint=checkpoints/quickstart/base",
        "--set",
        'datasets=["checkpoints/quickstart/sft.jsonl"]',
        "--set",
        "max_length=128",
        rows=60,
    )
    term.see(r"\? name")
    term.send("screens", ENTER)
    term.fill(
        {
            "max_steps": "400",
            "learning_rate": "0.002",
            "batch_size": "8",
            "gradient_accumulation_steps": "1",
            "eval_every": "20",
        }
    )
    shots.append(("The review, and the plan of a run", term.text()))
    term.send(ENTER)
    term.see("screens.json")
    term.close()

    term = opened("check", "screens.json", rows=50)
    term.child.wait()
    shots.append(("`llmlab check`", term.read()))

    term = opened("run", "screens.json")
    term.see(r"sample at step [2-9]0")
    term.see(r"step ([4-9]\d|\d\d\d) of")
    shots.append(("A run", term.text()))
    term.send("s")
    term.see("to resume: ")
    term.close()

    term = opened(rows=30)
    term.see("0\\) Quit")
    term.send("s", ENTER)
    shots.append(("Saved configs and runs", term.see("Which one")))
    term.send(CTRL_C, CTRL_C)
    term.close()

    term = opened("chat", "checkpoints/quickstart/dpo")
    term.see("you")
    term.send("/set temperature 0", ENTER)
    term.send("Add 3 and 4.", ENTER)
    term.read(1.5)
    shots.append(("The chat", term.text()))
    term.send(CTRL_D)

    page = [
        "# Screens",
        "",
        "Taken from a terminal of 80 columns by `python tests/end_to_end/screens.py FOLDER`.",
        "",
    ]
    for title, shot in shots:
        page += [f"## {title}", "", "```", shot.strip("\n").replace(str(folder), "."), "```", ""]
    DOCS.write_text("\n".join(page).rstrip() + "\n")
    (folder / "screens.json").unlink(missing_ok=True)
    print(DOCS)


if __name__ == "__main__":
    main()

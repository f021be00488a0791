"""The commands of the tutorials (docs/tutorials), as they stand there.

python tests/end_to_end/tutorials.py PAGE... | bash -eux     # in an empty folder: as a reader would, in full
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
# a page may go on from what those before it made
PAGES = ("first-model", "your-data", "align-7b", "checked-rewards", "did-it-get-better", "cluster")


def script(page: str) -> str:
    """Returns the blocks that a reader of a page pastes, as one script."""
    text = (FOLDER / f"{page}.md").read_text()
    return "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))


def steps(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each command of a page: ("llmlab", its arguments), or ("bash", [lines between two of them])."""
    other: list[str] = []
    for line in re.findall(r"(?:.*\\\n)*.*\n", script(page)):
        if not line.startswith("llmlab "):
            other.append(line)
            continue
        if other:
            yield "bash", ["".join(other)]
        other = []
        yield "llmlab", shlex.split(line.replace("\\\n", " "), comments=True)[1:]
    if other:
        yield "bash", ["".join(other)]


if __name__ == "__main__":
    print("\n".join(script(page) for page in sys.argv[1:] or PAGES))

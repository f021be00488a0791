"""The words that a person gave a run, in a file of their own: the record is the run's to write."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import read_object, write_text_atomically

TAGS = "tags.json"
TAG = re.compile(r"[\w.+-]{1,50}")
MOST = 50  # tags of a run


def tags_of(run: Path) -> tuple[str, ...]:
    """Returns the tags of a run in the order in which they were given; none where the file is damaged."""
    try:
        tags = read_object(run / TAGS).get("tags")
    except (OSError, ValueError):
        return ()
    tags = tags if isinstance(tags, list) else []
    return tuple(tag for tag in tags if isinstance(tag, str) and TAG.fullmatch(tag))[:MOST]


def tag(run: Path, *tags: str) -> tuple[str, ...]:
    """Gives a run tags, and returns all that it has.

    Raises:
        LabError: when one is no tag, or the file cannot be written.
    """
    for one in tags:
        if not TAG.fullmatch(one):
            raise LabError(
                f"{one!r} is no tag: letters, digits and . + - _, at most 50", remedy="for example best-lr"
            )
    return _write(run, tuple(dict.fromkeys((*tags_of(run), *tags))))


def untag(run: Path, *tags: str) -> tuple[str, ...]:
    """Takes tags from a run, and returns those that are left.

    Raises:
        LabError: when it does not have one, or the file cannot be written.
    """
    has = tags_of(run)
    for one in tags:
        if one not in has:
            raise LabError(f"has no tag {one!r}", where=str(run), remedy=f"it has {', '.join(has) or 'none'}")
    return _write(run, tuple(one for one in has if one not in tags))


def _write(run: Path, tags: tuple[str, ...]) -> tuple[str, ...]:
    if len(tags) > MOST:
        raise LabError(f"would have {len(tags)} tags, and {MOST} is the most", where=str(run))
    write_text_atomically(run / TAGS, json.dumps({"tags": list(tags)}) + "\n")
    return tags

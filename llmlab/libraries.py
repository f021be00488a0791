"""What the libraries may say: their logs only of errors, each of their warnings as one line, once."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# what libraries warn of although it is as it should be: the start of the text, and why
KNOWN_WARNINGS = {
    "You are using 'rollout_func', which is an experimental feature": (
        "it is how TRL is given the lab's sampling, which draws every answer by seed, step and row"
    ),
    "Could not find a config file in": (
        "peft looks for the vocabulary's size where an adapter stands on an adapter; the lab never changes it"
    ),
}


@contextmanager
def importing() -> Iterator[None]:
    """Lets the garbage collector rest while libraries are imported, and never look through what they made.

    torch, transformers and datasets make a million objects that stay: looking through them again and again
    took a second of six until a training began, and half a second for each full collection after that.
    Where all was imported before, nothing changes.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if enabled:
            gc.enable()


def quiet_libraries(warn: Callable[[str], None]) -> None:
    """Limits the logs of transformers, datasets, accelerate and TRL to errors, and hands each warning on as
    one line.

    Left out are the warnings that a user can do nothing about: deprecations, which are the lab's to fix (its
    tests fail on them), and `KNOWN_WARNINGS`.

    Args:
        warn: takes a line, without its newline; the same one only once.
    """
    with importing():
        import datasets
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for library in ("trl", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for deprecation in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", deprecation)
    for start in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(start))
    shown: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        if text not in shown:
            shown.add(text)
            where, _, inside = filename.partition("site-packages/")
            library = re.split(r"[/.]", inside)[0] if inside else Path(where).stem
            warn(f"{library} warns: {text}")

    warnings.showwarning = show


@contextmanager
def quiet_within(warn: Callable[[str], None]) -> Iterator[None]:
    """Does what `quiet_libraries` does; the process finds its own filters of warnings again behind it."""
    with warnings.catch_warnings():
        quiet_libraries(warn)
        yield

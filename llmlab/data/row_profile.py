"""What is measured of the text of a row, in one process or several: words, language, signature, phrases."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np

from llmlab.data.contamination import PhraseTable
from llmlab.data.language import UNKNOWN, language_of
from llmlab.data.near_duplicates import signature
from llmlab.data.words import word_hashes
from llmlab.errors import LabError

BATCH = 200  # texts that a process is given at once
AHEAD = 4  # batches for each process that are read ahead


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        language: whether the language is told.
        near: whether there is a signature.
        phrases: that are searched for.
    """

    language: bool = False
    near: bool = False
    phrases: PhraseTable | None = None


@dataclass(frozen=True)
class RowProfile:
    """What was measured of a text.

    Attributes:
        words: how many.
        language: its code; "unknown" where it was not asked for or cannot be told.
        signature: for near duplicates: uint32, shape (256,); None where it was not asked for, or
            there are no words.
        found: places of the phrases that stand in it.
    """

    words: int
    language: str
    signature: np.ndarray | None
    found: np.ndarray | None


def profile(text: str, wanted: Wanted) -> RowProfile:
    """Returns what is wanted of a text."""
    hashes = word_hashes(text)
    return RowProfile(
        len(hashes),
        language_of(text) if wanted.language else UNKNOWN,
        signature(hashes) if wanted.near and len(hashes) else None,
        wanted.phrases.found_in(hashes) if wanted.phrases else None,
    )


def profiles(texts: Iterable[str], wanted: Wanted, processes: int = 1) -> Iterator[RowProfile]:
    """Yields what is wanted of each text, in their order, whatever the number of processes.

    Raises:
        LabError: when a process was ended from outside.
    """
    if processes <= 1:
        yield from (profile(text, wanted) for text in texts)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (wanted,))
    try:
        with _uninterrupted():
            pool.submit(_measure, []).result()  # starts the processes
        waiting: deque[Future[list[RowProfile]]] = deque()
        texts = iter(texts)
        while batch := list(islice(texts, BATCH)):
            waiting.append(pool.submit(_measure, batch))
            if len(waiting) >= AHEAD * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise LabError(
            "a process of it was ended from outside",
            remedy="start again with fewer `--processes`: memory may have run out",
            exit_code=1,
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that start inside never see Ctrl+C, even as they import; one that comes is raised behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


_wanted = Wanted()  # of a process of the pool, which is told once


def _begin(wanted: Wanted) -> None:
    global _wanted
    _wanted = wanted
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a process of the pool when the first one is gone, killed too."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _measure(texts: list[str]) -> list[RowProfile]:
    return [profile(text, _wanted) for text in texts]

"""How far an evaluation is. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: answers of a model to a source that are there, of all of them; 0 of 0 where
    their number is not known yet.
    """

    model: str
    source: str
    done: int
    total: int


Tell = Callable[[Progress], None]

"""The processes of a run, as who evaluates its model sees them: neither training nor evaluation imports the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Workers(Protocol):
    """The processes that answer together, each of which has the whole model."""

    @property
    def process(self) -> int:
        """Number of this one, from 0; the first one writes."""
        ...

    @property
    def processes(self) -> int:
        """How many there are."""
        ...

    def from_first(self, decide: Callable[[], T]) -> T:
        """Returns in every process what the first one decides, or has written; it waits for room."""
        ...

    def together(self, compute: Callable[[], list[T]]) -> list[T]:
        """Returns what all processes compute, in their order.

        Raises:
            LabError: in every process, where one fails.
        """
        ...

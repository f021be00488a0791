"""What could not be looked up before a run, in words. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.models.hub import HubAnswer

if TYPE_CHECKING:
    from llmlab.training.inputs import Unchecked

WORDS = {
    HubAnswer.DOWNLOADED: "downloaded before",
    HubAnswer.FOUND: "on the hub",
    HubAnswer.OFFLINE: "not checked (offline)",
    HubAnswer.UNREACHABLE: "not checked (offline: the hub cannot be reached)",
}


def unchecked_line(unchecked: Unchecked) -> str:
    """Returns the option, the name, and why it was not checked."""
    return f"{unchecked.option}: {unchecked.name}: {WORDS[unchecked.answer]}"

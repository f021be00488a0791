"""How a judge is named: a model that is here, a served one, or the reference of each row."""

from __future__ import annotations

from llmlab.endpoint import address_and_model, is_endpoint

REFERENCE = "reference"
ABSTENTION = "The passage does not say."  # the reference of rows whose text does not have the answer


def judged_by_reference(judge: str) -> str | None:
    """Returns what the reference of a row is whose text does not say, where references judge; else None.

    `reference` takes that of the shipped passages, `reference: I do not know.` another one.
    """
    word, _, phrase = judge.partition(":")
    if word.strip() != REFERENCE:
        return None
    return phrase.strip() or ABSTENTION


def check_judge(judge: str) -> None:
    """Refuses an address that is none, or one that holds a secret.

    Raises:
        ValueError: with the reason.
    """
    if is_endpoint(judge):
        address_and_model(judge)


def is_model(judge: str) -> bool:
    """Returns whether a judge is a model that is loaded."""
    return not is_endpoint(judge) and judged_by_reference(judge) is None

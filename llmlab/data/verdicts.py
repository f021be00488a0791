"""What an answer to a question on a text may be worth, and how a judge is asked for it."""

from __future__ import annotations

VERDICTS = ("supported", "contradicted", "unsupported", "abstained")
UNREADABLE = "unreadable"  # what a judge said holds none of them
QUESTION = (
    "{prompt}\n\nAnswer: {answer}\n\nIs this answer supported by the text, contradicted by it, unsupported"
    " (the text does not say), or abstained (it gives no answer)?\nVerdict:"
)

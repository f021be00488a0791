"""A batch of answers, computed, and as each stands in the file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmlab.errors import LabError
from llmlab.evaluation.items import Item
from llmlab.evaluation.measures import Answer, Measure

OWN = (
    "key",
    "model",
    "source",
    "row",
    "part",
    "group",
    "measure",
    "prompt",
    "reference",
)  # of a line, not of an answer


@torch.no_grad()
def answers_of(measure: Measure, batch: Sequence[Item], *, model: str, full: str) -> list[Answer]:
    """Returns the answers to a batch.

    Args:
        measure: with the model that answers.
        batch: what is asked.
        model: its name, for errors.
        full: what to do where the memory does not hold a batch.

    Raises:
        LabError: with exit code 1 when the model fails at it, or gives no numbers.
    """
    try:
        answers = measure.answer(batch)
    except torch.OutOfMemoryError:
        raise LabError("the memory does not hold a batch", where=model, remedy=full, exit_code=1) from None
    for one in answers:
        numbers = [one.get("log_prob"), one.get("score")]
        if any(value is not None and value != value for value in numbers):
            raise LabError(
                "gives values that are not numbers (NaN)",
                where=model,
                remedy="try another `dtype`, or look at its weights",
                exit_code=1,
            )
    return answers


def line_of(model: str, source: str, measure: str, item: Item, key: str, answer: Answer) -> Answer:
    """Returns an answer as it stands in the file.

    Args:
        model: that gave it, by its name.
        source: of what was asked, by its name.
        measure: by which it was.
        item: what was asked.
        key: of the answer.
        answer: as the measure gives it.
    """
    return {
        "key": key,
        "model": model,
        "source": source,
        "row": item.row,
        "part": item.part,
        "group": item.group,
        "measure": measure,
        "prompt": item.prompt,
        "answer": answer["answer"],
        "reference": item.reference,
        "score": answer["score"],
        "log_prob": answer["log_prob"],
        "tokens": answer["tokens"],
        **{name: value for name, value in answer.items() if name not in OWN},
    }

"""What can be done with the rows of a task: each measure makes items of rows and answers a batch of items.

| measure | rows | an answer's `score`, `log_prob` |
| --- | --- | --- |
| label | with label words | 1 where the word is the right one; log pi of the word |
| answer | prompts with a reference, by "generate" | 1 where it is the reference; log pi of what was said |
| text | plain text, a window an item | none; log pi of the window's own tokens |
| conversation | conversations, by "score" | none; log pi of the assistant's tokens |
| preference | pairs | 1 where the chosen answer is likelier; log pi of the chosen one |
| judged | prompts with a reference and a `judge` | 1 where supported; log pi of what was said |
| reward | prompts, with rewards | the reward of what was said; its log pi |

Items of one batch are of about one length, which changes no figure: each is computed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.config.evaluation import Task
from llmlab.errors import LabError
from llmlab.evaluation.items import TaskRow
from llmlab.evaluation.measures.base import Answer, Measure, Prepared, Reader, Reward
from llmlab.evaluation.measures.judged import Judged
from llmlab.evaluation.measures.read import Conversations, Labels, Pairs, Texts
from llmlab.evaluation.measures.spoken import Generated, Rewarded, SaidLabels

__all__ = ["Answer", "Measure", "Prepared", "Reader", "Reward", "choose", "measure_of", "refuse_lengths"]


def choose(task: Task, reader: Reader, rows: Sequence[TaskRow]) -> Measure:
    """Returns the measure of a task's rows, which follows from their shape.

    Raises:
        LabError: when they cannot be measured so, or an option does not apply to them.
    """
    cls = measure_of(task, rows, rewarded=bool(task.rewards) or reader.reward is not None)
    model = reader.model
    if model.config.is_encoder_decoder and issubclass(cls, (Pairs, Texts)):
        raise LabError(
            f"holds {'pairs' if cls is Pairs else 'plain text'}, which are measured on decoders; this"
            f" model is an encoder-decoder ({model.config.model_type})",
            where=task.source.name,
            remedy="give it prompts and answers, or labels",
        )
    return cls(task, reader)


def measure_of(task: Task, rows: Sequence[TaskRow], *, rewarded: bool) -> type[Measure]:
    """Returns how the rows of a task are measured, whatever the model.

    Args:
        task: with its options.
        rows: of it.
        rewarded: whether answers are scored by rewards.

    Raises:
        LabError: when they cannot be measured so, or an option does not apply to them.
    """
    first, name = rows[0].row, task.source.name
    labels = all(one.row.get("choices") for one in rows)
    kind = "classifications" if labels else "pairs" if "chosen" in first else ""
    if rewarded or (task.by == "generate" and not kind):
        kind = "prompts that are answered"
    if kind:
        refuse_lengths(task.max_length, task.stride, kind, name)
    elif "text" not in first:
        refuse_lengths(None, task.stride, "conversations", name)
    if rewarded:
        return Rewarded
    if labels and task.judge:
        raise LabError(
            "`judge` is for answers to questions; these are classifications",
            where=name,
            remedy="leave it out",
        )
    if labels:
        return Labels if task.by == "score" else SaidLabels
    if task.by == "generate" and ("text" in first or "chosen" in first):
        raise LabError(
            f'`by` "generate": {"plain text" if "text" in first else "pairs"} have no reference answer'
            " to compare with",
            where=name,
            remedy="leave it out, or use prompts with answers or labels",
        )
    if task.by == "generate":
        return Judged if task.judge else Generated
    return Pairs if "chosen" in first else Texts if "text" in first else Conversations


def refuse_lengths(max_length: int | None, stride: int | None, kind: str, where: str) -> None:
    """Refuses lengths for rows that are not read in that way.

    Raises:
        LabError: where one is given.
    """
    for name, value, of in (
        ("max-length", max_length, "texts and conversations"),
        ("stride", stride, "texts"),
    ):
        if value is not None:
            raise LabError(
                f"`--{name}` applies to {of}; these are {kind}", where=where, remedy="leave it out"
            )

"""Whether what a model says is supported by the text that it was asked about, as a judge says.

The judge's own agreement with labels is measured first, where there are some (`judge_check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.data.verdicts import VERDICTS
from llmlab.evaluation.items import Item
from llmlab.evaluation.judges import Claim, judge_identity
from llmlab.evaluation.measures.base import Answer
from llmlab.evaluation.measures.spoken import Generated


class Judged(Generated):
    """What the model says, and what the judge makes of it."""

    name = "judged"

    def drawn(self, row: int, repeat: int) -> dict[str, Any]:
        """Returns the draw and the judge."""
        judge = judge_identity(str(self.task.judge), self.reader.judge_tokens)
        return {**super().drawn(row, repeat), "judge": judge}

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns what was said to each prompt, its `verdict` with what the judge gave beside it, and whether
        it is `right`: the reference to the letter.
        """
        answers = super().answer(items)
        assert self.reader.judge is not None
        claims = [
            Claim(_text(item.prompt), one["answer"], item.reference or "")
            for item, one in zip(items, answers, strict=True)
        ]
        for one, verdict in zip(answers, self.reader.judge.judge(claims), strict=True):
            one |= {"right": one["score"], "verdict": verdict.word, **verdict.more}
            one["score"] = float(verdict.word == VERDICTS[0])
        return answers


def _text(prompt: Any) -> str:
    """Returns the text of a prompt's turns."""
    return "\n".join(str(turn["content"]) for turn in prompt)

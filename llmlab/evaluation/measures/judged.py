"""Whether what a model says is supported by the text that it was asked about, as another model judges.

The judge finds the likeliest of four words behind text, question and answer, as in a classification; its own
agreement with a person's labels is that of such a classification, and is measured first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmlab.data.schemas import user
from llmlab.evaluation.classification import label_prompt_ids, score_words
from llmlab.evaluation.figures import VERDICTS
from llmlab.evaluation.items import Item
from llmlab.evaluation.measures.base import Answer
from llmlab.evaluation.measures.spoken import Generated
from llmlab.models.identity import known_weights
from llmlab.models.typed import LanguageModel

QUESTION = (
    "{prompt}\n\nAnswer: {answer}\n\nIs this answer supported by the text, contradicted by it, unsupported"
    " (the text does not say), or abstained (it gives no answer)?\nVerdict:"
)
Judge = Callable[[list[str], list[str]], list[dict[str, float]]]  # prompts, answers -> log pi of each verdict


def judge_by(model: LanguageModel, tokenizer: Any) -> Judge:
    """Returns the judge that a model is, for texts with their questions, and answers."""

    def judge(prompts: list[str], answers: list[str]) -> list[dict[str, float]]:
        asked = [
            user(QUESTION.replace("{prompt}", prompt).replace("{answer}", answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        seq2seq = model.config.is_encoder_decoder
        ids = [label_prompt_ids(tokenizer, {"prompt": turns}, seq2seq=seq2seq) for turns in asked]
        scores = score_words(model, tokenizer, ids, list(VERDICTS)).double().cpu().tolist()
        return [dict(zip(VERDICTS, values, strict=True)) for values in scores]

    return judge


class Judged(Generated):
    """What the model says, and whether the judge finds it in the text."""

    name = "judged"

    def drawn(self, row: int, repeat: int) -> dict[str, Any]:
        """Returns the draw and the judge."""
        judge = str(self.task.judge)
        return {**super().drawn(row, repeat), "judge": known_weights(judge) or judge}

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns what was said to each prompt, with the `verdict` and the log-probabilities of all four."""
        answers = super().answer(items)
        assert self.reader.judge is not None
        prompts = ["\n".join(str(turn["content"]) for turn in item.prompt) for item in items]  # type: ignore[index]
        judged = self.reader.judge(prompts, [one["answer"] for one in answers])
        for one, values in zip(answers, judged, strict=True):
            verdict = max(VERDICTS, key=values.__getitem__)
            one |= {"verdict": verdict, "score": float(verdict == VERDICTS[0]), "verdicts": values}
        return answers

"""What lm-eval says of a task, as rows and figures of an evaluation."""

from __future__ import annotations

import contextlib
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmlab.evaluation.benchmarks import MEASURE

Answer = dict[str, Any]
DIRECTIONS: dict[bool | None, str] = {True: "higher", False: "lower"}  # of `higher_is_better`


def values_of(about: dict[str, Any]) -> dict[str, float]:
    """Returns the figures of a task or group: `acc`, or `exact_match,strict` where it has several filters."""
    return {
        _figure(name, filter_): float(value)
        for key, value in about.items()
        for name, comma, filter_ in (key.partition(","),)
        if comma and not name.endswith("_stderr") and isinstance(value, int | float)
    }


def _figure(metric: str, filter_: str) -> str:
    return metric if filter_ == "none" else f"{metric},{filter_}"


def rows_of(task: Any, samples: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Returns the samples of a task as rows of an evaluation; of several filters one row a sample."""
    by, better = task.aggregation(), task.higher_is_better()
    rows: dict[int, Answer] = {}
    for sample in samples:
        number = int(sample["doc_id"])
        row = rows.setdefault(number, {"row": number, **_said(task, sample, tokenizer), "metrics": {}})
        for metric in sample["metrics"]:
            function = by.get(metric)
            own = getattr(function, "__module__", "") == "lm_eval.api.metrics"
            row["metrics"][_figure(metric, sample["filter"])] = {
                "value": _plain(sample[metric]),
                "by": function.__name__ if own else "",
                "better": DIRECTIONS.get(better.get(metric)),
            }
    for row in rows.values():
        first: Answer = next(iter(row["metrics"].values()), {})
        value = first.get("value")
        row["score"] = float(value) if isinstance(value, int | float) else None
    return [rows[number] for number in sorted(rows)]


def _said(task: Any, sample: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """Returns what was asked and what the model made of it."""
    asked, found = [*sample["arguments"]], sample["filtered_resps"]
    prompt, reference = str(asked[0][0]), sample["target"]
    more: Answer = {}
    log_prob: float | None = None
    answer: str | None = None
    match task.OUTPUT_TYPE:
        case "multiple_choice":
            continuations = [str(one[1]).strip() for one in asked]
            count = len(task.doc_to_choice(sample["doc"])) if task.config.doc_to_choice else len(asked)
            distinct = len(set(continuations[:count])) == count
            choices = continuations[:count] if distinct else [str(one[0]) for one in asked[:count]]
            log_probs = [float(one[0]) for one in found[:count]]
            best = max(range(len(choices)), key=log_probs.__getitem__)
            answer, log_prob = choices[best], log_probs[best]
            more["log_probs"] = dict(zip(choices, log_probs, strict=True))
            if isinstance(reference, int) and 0 <= reference < len(choices):
                reference = choices[reference]
        case "loglikelihood":  # nothing is said: the reference is read
            reference, log_prob = str(asked[0][1]), float(found[0][0])
        case "loglikelihood_rolling":
            reference, log_prob = None, float(found[0])
        case _:
            said = found[0]
            answer = str(said[0] if isinstance(said, list) and said else said)
            more["said"] = str(sample["resps"][0][0])
    read = next(text for text in (answer, reference, prompt) if text is not None)
    return {
        "part": 0,
        "group": None,
        "measure": MEASURE,
        "prompt": prompt,
        "answer": answer,
        "reference": None if reference is None else str(reference),
        "score": None,
        "log_prob": log_prob,
        "tokens": len(tokenizer(str(read), add_special_tokens=False)["input_ids"]),
        **more,
    }


def _plain(value: Any) -> Any:
    """Returns a metric's value as JSON data: numbers as numbers, pairs as lists."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool):
        return float(value)
    if value is None or type(value) in (int, float, str):
        return value
    with contextlib.suppress(TypeError, ValueError):  # numpy's numbers
        return float(value)
    return str(value)

"""How far a judge agrees with labels: measured first, as one has to know it before its verdicts.

Rows are those of a classification whose words are verdicts, as `llmlab:passage-claims`. The judge is asked
what they ask, and its answers are kept like those of a model, under the judge's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llmlab.config.evaluation import EvaluationConfig, Task
from llmlab.config.judges import judged_by_reference
from llmlab.config.sources import SourceConfig, short_names
from llmlab.config.suites import tasks_of
from llmlab.data.verdicts import VERDICTS
from llmlab.errors import LabError
from llmlab.evaluation.figures import Answer, is_whole
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.items import Item, TaskRow, read_rows
from llmlab.evaluation.judges import LocalJudge, ServedJudge, Verdict, judge_identity
from llmlab.evaluation.loaded import Judges
from llmlab.evaluation.progress import Progress, Tell
from llmlab.evaluation.subjects import JUDGE

Kept = dict[tuple[Any, ...], Answer]  # answers by model, source, row and part
MEASURE = "label"


def judges_of(config: EvaluationConfig) -> list[str]:
    """Returns the judges of an evaluation that are models."""
    named = dict.fromkeys(task.judge for task in tasks_of(config) if task.judge)
    return [one for one in named if judged_by_reference(one) is None]


def check_judges(
    config: EvaluationConfig,
    folder: EvaluationFolder,
    judges: Judges,
    here: Kept,
    tell: Tell | None,
) -> list[dict[str, Any]]:
    """Asks every judge what labels are known of, where there are some, and returns how the rows were read. A
    served judge is reached in any case, before a model is loaded.

    Args:
        config: of the evaluation.
        folder: of it.
        judges: of it.
        here: the answers that it has, by place.
        tell: is told how far it is.

    Raises:
        LabError: when a judge cannot be loaded or reached, or the rows are no verdicts.
    """
    found = []
    names = short_names(config.judge_check)
    judged_by = judges_of(config)
    if config.judge_check and not judged_by:
        raise LabError(
            "`judge_check` measures a `judge` that is a model, and no task names one",
            remedy="leave it out, or name a judge",
        )
    for name in judged_by:
        judge = judges.model(name)
        for short, source in zip(names, config.judge_check, strict=True):
            found.append(_check(name, f"judge on {short}", source, (config, folder, judge, here), tell))
    return found


def _check(
    name: str,
    title: str,
    source: SourceConfig,
    within: tuple[EvaluationConfig, EvaluationFolder, LocalJudge | ServedJudge, Kept],
    tell: Tell | None,
) -> dict[str, Any]:
    config, folder, judge, here = within
    rows, notes = read_rows(Task(source=source), ("prompt_completion",))
    items = [_item(one, source, name, config.judge_tokens) for one in rows]
    missing = []
    for item in items:
        kept = here.get((name, title, item.row, 0))
        if not (kept and kept["key"] == item.key(MEASURE, {}) and is_whole(MEASURE, kept)):
            missing.append(item)
    for done, batch in _batches(missing, config.batch_size):
        if tell:
            tell(Progress(name, title, len(items) - len(missing) + done, len(items)))
        verdicts = judge.ask([str(item.prompt) for item in batch])
        folder.append([_saved(name, title, item, one) for item, one in zip(batch, verdicts, strict=True)])
    return {
        "source": title,
        "model": name,
        "role": JUDGE,
        "measure": MEASURE,
        "rows": len(rows),
        "reading": {},
        "notes": notes,
    }


def _batches(items: Sequence[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    for start in range(0, len(items), size):
        yield start, list(items[start : start + size])


def _item(one: TaskRow, source: SourceConfig, judge: str, tokens: int) -> Item:
    choices = one.row.get("choices") or ()
    if not choices or not set(choices) <= set(VERDICTS):
        raise LabError(
            f"`judge_check` needs labels of {', '.join(VERDICTS)}",
            where=source.name,
            remedy='read it with `format: classification` and `labels`, or take "llmlab:passage-claims"',
        )
    text = str(one.row["prompt"][-1]["content"])
    settings = {"judge": judge_identity(judge, tokens), "asked": text}
    return Item(one.number, 0, one.group, (), text, one.row["completion"], settings)


def _saved(name: str, title: str, item: Item, verdict: Verdict) -> Answer:
    log_probs = verdict.more.get("verdicts")
    return {
        "key": item.key(MEASURE, {}),
        "model": name,
        "source": title,
        "row": item.row,
        "part": 0,
        "group": item.group,
        "measure": MEASURE,
        "prompt": item.prompt,
        "answer": verdict.word if verdict.word in VERDICTS else "",
        "reference": item.reference,
        "score": float(verdict.word == item.reference),
        "log_prob": log_probs[verdict.word] if log_probs else None,
        "tokens": 0,
        "choices": list(VERDICTS),
        **({"log_probs": log_probs} if log_probs else {"judge_said": verdict.more.get("judge_said")}),
    }

"""The whole pipeline on what ships: tokenizer, base training, SFT, DPO, with held-out figures before and after each.

Sits at the top of the house with the command line: it only writes configs and runs them, so everything it did can be
replayed with `llmlab run`. As in life, the instruction data was not checked: a part of its answers is careless. What the
fine-tuned model takes over of that, preference training mends: a wrong answer of its own to a training question is the
rejected one, the right answer the chosen one. Held-out questions occur in neither.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llmlab.config import DPOConfig, ModelConfig, PretrainConfig, SFTConfig, SourceConfig, save_config
from llmlab.data.tasks import careless_answer, distinct_questions, questions
from llmlab.errors import LabError
from llmlab.files import write_text_atomically
from llmlab.screen import LabConsole

Question = tuple[str, str, str]
HELD_OUT = 400  # questions that no training row contains
CARELESS = 0.5  # share of careless answers in the instruction data
PLANTED = f"""{CARELESS:.0%} of the answers in the SFT data are wrong on purpose (off by one, a letter missing).
DPO gains because it corrects them. With clean data the small model reaches about 80% after SFT; DPO on its own mistakes lowers
that."""
DEFAULT_MINUTES = 5.0


@dataclass(frozen=True)
class Scale:
    """How much work the minutes buy; the shares were tuned on two cores."""

    minutes: float
    small: bool  # a real model on the CPU: far fewer, larger steps

    @property
    def factor(self) -> float:
        """Work relative to the default."""
        return self.minutes / DEFAULT_MINUTES

    def steps(self, at_default: int) -> int:
        """Returns the steps of a stage, at least 10."""
        return max(10, round(at_default * self.factor))


@dataclass
class Report:
    """Figures of all stages, for the table at the end."""

    rows: list[tuple[str, str, float, float]] = field(default_factory=list)  # stage, figure, before, after
    minutes: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)  # question, right answer, given answer
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


def quickstart(folder: Path, *, minutes: float, model: str | None, console: Console) -> Path:
    """Runs the pipeline in `folder` and returns the final model's folder.

    Args:
        folder: made new; gets configs, data and runs.
        minutes: about how long it may take.
        model: a real model to fine-tune with LoRA in place of one trained from scratch.
        console: where progress goes.

    Raises:
        LabError: when the folder is taken or the model does not load.
    """
    if folder.exists() and any(folder.iterdir()):
        raise LabError("is not empty", where=str(folder), remedy="choose another folder with -o, or remove it")
    if not 0 < minutes <= 1440:
        raise LabError(f"`--minutes` {minutes:g} is out of range", remedy="use 1 to 1440")
    from llmlab.train.environment import quiet_libraries

    quiet_libraries()
    scale, report, began = Scale(minutes, model is not None), Report(), time.perf_counter()
    size = HELD_OUT if model is None else 40
    held_out = distinct_questions(size + size // 2, seed=1)
    test, validation = held_out[:size], held_out[size:]  # the weights kept are chosen on the second, judged on the first
    if model is None:
        policy = _base(folder, scale, report, console)
    else:
        from llmlab.runs.folder import find_model

        policy = find_model(model)
    policy = _sft(folder, policy, scale, test, validation, report, console)
    policy = _dpo(folder, policy, scale, test, validation, report, console)
    _finish(folder, policy, report, time.perf_counter() - began, console)
    return Path(policy)


def _base(folder: Path, scale: Scale, report: Report, console: Console) -> str:
    from llmlab.data.prepare import document_texts
    from llmlab.data.tokenizer import save_tokenizer, train_tokenizer

    console.rule("1 of 3: tokenizer and base training on Moby-Dick")
    source = SourceConfig(name="llmlab:moby-dick")
    tokenizer = train_tokenizer(document_texts(source), 1024)
    save_tokenizer(tokenizer, folder / "tokenizer")
    shape = ModelConfig(
        tokenizer_name=str(folder / "tokenizer"), vocab_size=len(tokenizer), d_model=160, n_layers=4, n_heads=4,
        n_kv_heads=2, d_ff=432, max_seq_len=256,
    )  # fmt: skip
    save_config(shape, folder / "model.json")
    steps = scale.steps(280)
    config = PretrainConfig(
        model=str(folder / "model.json"), datasets=[source], eval_fraction=0.05, max_steps=steps, optimizer="muon",
        learning_rate=1e-2, warmup_steps=min(20, steps // 5), batch_size=16, gradient_accumulation_steps=1,
        eval_every=max(1, steps // 4), eval_steps=20, save_every=steps, output_dir=str(folder / "base"), report_to=[],
    )  # fmt: skip
    result = _run(config, folder / "base.json", report, console)
    _figure(report, "base", "bits per byte", result.metrics, "eval_bits_per_byte")
    for line in (json.loads(text) for text in (result.folder / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            report.losses.append((line["step"], line["loss"]))
        if "eval_loss" in line:
            report.held_out.append((line["step"], line["eval_loss"]))
    return str(result.model)


def _sft(
    folder: Path, policy: str, scale: Scale, test: list[Question], validation: list[Question], report: Report, console: Console
) -> str:
    console.rule(f"2 of 3: supervised fine-tuning on questions and answers, {CARELESS:.0%} of them wrong on purpose")
    steps = scale.steps(16 if scale.small else 300)
    rows = list(itertools.islice(questions(0, held_out=False), 2000 if scale.small else 40_000))
    rng = random.Random(0)
    said = [careless_answer(*row) if rng.random() < CARELESS else row[2] for row in rows]
    _write_rows(folder / "sft.jsonl", [{"prompt": row[1], "completion": text} for row, text in zip(rows, said, strict=True)])
    _write_rows(folder / "test.jsonl", [{"task": t, "prompt": q, "completion": a} for t, q, a in test])
    _write_rows(folder / "validation.jsonl", [{"prompt": q, "completion": a} for _, q, a in validation])
    small: dict[str, Any] = dict(adapter="lora", learning_rate=5e-4, batch_size=2, max_length=256)
    own: dict[str, Any] = dict(optimizer="muon", learning_rate=4e-3, batch_size=16, max_length=256)
    config = SFTConfig(
        policy_checkpoint=policy, datasets=[SourceConfig(name=str(folder / "sft.jsonl"))],
        eval_datasets=[SourceConfig(name=str(folder / "validation.jsonl"))], max_steps=steps, warmup_steps=min(20, steps // 5),
        gradient_accumulation_steps=1, eval_every=max(1, steps // 2), eval_steps=10, save_every=steps,
        output_dir=str(folder / "sft"), report_to=[], **(small if scale.small else own),
    )  # fmt: skip
    before = _answers(policy, test, console)
    result = _run(config, folder / "sft.json", report, console)
    after = _answers(str(result.model), test, console)
    report.rows.append(("SFT", "held-out exact match", before.accuracy, after.accuracy))
    return str(result.model)


def _dpo(
    folder: Path, policy: str, scale: Scale, test: list[Question], validation: list[Question], report: Report, console: Console
) -> str:
    console.rule("3 of 3: preference training on right and wrong answers")
    from llmlab.evaluate.pairs import preference_accuracy

    train = list(itertools.islice(questions(7, held_out=False), 48 if scale.small else 6000))
    pairs = _own_mistakes(policy, train, console)
    test_pairs = _own_mistakes(policy, test, console, at_least=1)
    _write_rows(folder / "dpo.jsonl", [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs])
    _write_rows(
        folder / "dpo_test.jsonl",
        [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in test_pairs],
    )
    chosen_on = _own_mistakes(policy, validation, console, at_least=1)
    _write_rows(
        folder / "dpo_validation.jsonl", [dict(zip(("prompt", "chosen", "rejected"), p, strict=True)) for p in chosen_on]
    )
    steps = scale.steps(8 if scale.small else 120)
    small: dict[str, Any] = dict(adapter="lora", learning_rate=5e-5, batch_size=4, mini_batch_size=2)
    own: dict[str, Any] = dict(learning_rate=1e-4, batch_size=64, mini_batch_size=64)
    config = DPOConfig(
        policy_checkpoint=policy, datasets=[SourceConfig(name=str(folder / "dpo.jsonl"))],
        eval_datasets=[SourceConfig(name=str(folder / "dpo_validation.jsonl"))], beta=0.3, max_steps=steps,
        warmup_steps=min(10, steps // 5), max_length=128, max_prompt_length=96, eval_every=max(1, steps // 2), eval_steps=10,
        save_every=steps, output_dir=str(folder / "dpo"), report_to=[], **(small if scale.small else own),
    )  # fmt: skip
    before, model, tokenizer = _answers(policy, test, console, keep=True)
    ranked_before = preference_accuracy(model, tokenizer, test_pairs)
    result = _run(config, folder / "dpo.json", report, console)
    after, model, tokenizer = _answers(str(result.model), test, console, keep=True)
    report.rows.append(("DPO", "held-out exact match", before.accuracy, after.accuracy))
    report.rows.append(("DPO", "preference accuracy", ranked_before, preference_accuracy(model, tokenizer, test_pairs)))
    seen: dict[str, tuple[str, str, str]] = {}
    for task, question, right, given in after.rows:
        seen.setdefault(task, (question, right, given))
    report.samples = list(seen.values())[:3]
    return str(result.model)


def _own_mistakes(policy: str, rows: list[Question], console: Console, at_least: int = 32) -> list[tuple[str, str, str]]:
    """Returns (question, right answer, the model's own wrong answer), sampled at temperature 1."""
    from llmlab.evaluate.answers import answer
    from llmlab.train.loading import load_model

    model, tokenizer = load_model(policy)
    console.print(f"asking the fine-tuned model {len(rows):,} questions; its mistakes become the rejected answers")
    given = answer(model, tokenizer, rows, batch_size=256, temperature=1.0)
    pairs = [(question, right, wrong) for _, question, right, wrong in given.rows if wrong and wrong != right]
    if len(pairs) < at_least:  # a model that is nearly always right: answers to other questions stand in
        shifted = zip(rows, rows[1:] + rows[:1], strict=True)
        pairs += [(q, right, other) for (_, q, right), (_, _, other) in shifted if other != right]
    return pairs


def _answers(policy: str, test: list[Question], console: Console, *, keep: bool = False) -> Any:
    from llmlab.data.tokenizer import ensure_chat_template
    from llmlab.evaluate.answers import answer
    from llmlab.train.loading import load_model, stop_at_turn_ends

    model, tokenizer = load_model(policy)
    ensure_chat_template(tokenizer)
    stop_at_turn_ends(model, tokenizer)
    answers = answer(model, tokenizer, test, batch_size=128)
    console.print(f"{Path(policy).parent.name or policy}: {answers.accuracy:.1%} of {len(test)} held-out questions right")
    return (answers, model, tokenizer) if keep else answers


def _run(config: Any, file: Path, report: Report, console: Console) -> Any:
    from llmlab.train.engine import exit_code, run

    save_config(config, file)
    result = run(config, console=console)
    if result.stopped_by:
        console.print(f"stopped; `llmlab run {file}` goes on from here")
        sys.exit(exit_code(result))
    report.minutes[config.KIND] = result.seconds / 60
    return result


def _figure(report: Report, stage: str, name: str, metrics: dict[str, float], key: str) -> None:
    report.rows.append((stage, name, metrics.get("before_" + key, math.nan), metrics[key]))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _finish(folder: Path, policy: str, report: Report, seconds: float, console: Console) -> None:
    from llmlab.train.dashboard import duration, loss_curve

    if report.losses:
        console.print("\nbase training: loss over steps", highlight=False)
        width, height = min(console.width, 100), 12
        console.print(loss_curve(report.losses, report.held_out, width, height), highlight=False, soft_wrap=True)
    if report.samples:
        samples = Table("question", "right", "model says", title="three held-out questions", title_justify="left")
        for row in report.samples:
            samples.add_row(*row)
        console.print(samples)
    out = LabConsole()
    table = Table("stage", "held-out figure", "before", "after", title="quickstart", title_justify="left")
    for stage, figure, before, after in report.rows:
        show = (lambda value: f"{value:.3f}") if figure == "bits per byte" else (lambda value: f"{value:.1%}")
        table.add_row(stage, figure, show(before), show(after))
    out.print(table)
    out.print(PLANTED, highlight=False, soft_wrap=True)
    figures = [{"stage": s, "figure": f, "before": b, "after": a} for s, f, b, a in report.rows]
    record = {"figures": figures, "minutes": report.minutes, "seconds": round(seconds, 1), "model": policy}
    write_text_atomically(folder / "quickstart.json", json.dumps(record, indent=2) + "\n")
    configs = [f"{name}.json" for name in ("base", "sft", "dpo") if (folder / f"{name}.json").exists()]
    out.print(f"took {duration(seconds)}; configs to replay are in {folder}: {', '.join(configs)}", highlight=False)
    out.print(f"talk to it:  llmlab chat {folder / 'dpo'}", highlight=False, soft_wrap=True)

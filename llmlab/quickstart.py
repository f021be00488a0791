"""The whole pipeline on what ships: tokenizer, base training, SFT, GRPO, with held-out figures before and
after; DPO beside it.

It only writes configs and runs them, so everything it did can be replayed with `llmlab run`. All answers in
the training data are right. The SFT data has them in two styles, a bare answer and a sentence, and the model
learns both; alignment then teaches it to give bare answers. GRPO starts from the SFT model, with a reward
that can be checked. DPO starts from the same SFT model, for comparison: its chosen answers are the bare right
ones, its rejected answers are sampled from the SFT model and are wrong or sentences. Held-out questions occur
in no training row.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from llmlab.config import (
    DPOConfig,
    GRPOConfig,
    ModelConfig,
    PretrainConfig,
    SFTConfig,
    SourceConfig,
    save_config,
)
from llmlab.config.rewards import RewardSource
from llmlab.data.tasks import distinct_questions, questions
from llmlab.errors import LabError
from llmlab.files import write_text_atomically
from llmlab.screen import LabConsole, warn

if TYPE_CHECKING:
    from llmlab.evaluation.answers import Answers

Question = tuple[str, str, str]
HELD_OUT = 400  # questions that no training row contains
SENTENCE = "The answer is {}."  # the style of every other answer of the SFT data
STYLES = (
    'All answers in the SFT data are right, every other one as a sentence ("The answer is 7."). Exact match'
    ' counts the bare ones ("7"): alignment teaches the style. "Right in either style" shows how far the'
    " knowledge stays."
)
LONGEST = 20  # tokens of an answer
DEFAULT_MINUTES = 5.0
DEFAULT_SEED = 42


@dataclass(frozen=True)
class Scale:
    """How much work the minutes buy; the shares were tuned on two cores."""

    minutes: float
    small: bool  # a real model on the CPU: far fewer, larger steps
    seed: int

    @property
    def factor(self) -> float:
        """Work relative to the default."""
        return self.minutes / DEFAULT_MINUTES

    def steps(self, at_default: int) -> int:
        """Returns the steps of a stage, at least 10."""
        return max(10, round(at_default * self.factor))

    def rows(self, at_default: int) -> int:
        """Returns how many questions a stage is given: fewer where there is no time to read them all."""
        return max(100, round(at_default * min(1.0, self.factor)))


@dataclass
class Report:
    """Figures of all stages, for the table at the end."""

    rows: list[tuple[str, str, float, float]] = field(default_factory=list)  # stage, figure, before, after
    minutes: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)  # question, right answer, given answer
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


def quickstart(
    folder: Path,
    *,
    minutes: float,
    model: str | None,
    console: Console,
    seed: int = DEFAULT_SEED,
    out: Console | None = None,
) -> Path:
    """Runs the pipeline in `folder` and returns the final model's folder.

    Args:
        folder: made new; gets configs, data and runs.
        minutes: about how long it may take.
        model: a real model to fine-tune with LoRA in place of one trained from scratch.
        console: where progress goes.
        seed: of weights, order and training questions; the held-out questions are always the same.
        out: where the table of the result goes; left out, standard output.

    Raises:
        LabError: when the folder is taken or the model does not load.
    """
    if folder.exists() and any(folder.iterdir()):
        raise LabError(
            "is not empty", where=str(folder), remedy="choose another folder with -o, or remove it"
        )
    if not 0 < minutes <= 1440:
        raise LabError(f"`--minutes` {minutes:g} is out of range", remedy="use 1 to 1440")
    from llmlab.libraries import quiet_libraries

    quiet_libraries(warn)
    scale, report, began = Scale(minutes, model is not None, seed), Report(), time.perf_counter()
    size = HELD_OUT if model is None else 40
    held_out = distinct_questions(size + size // 2, seed=1)
    test, validation = (
        held_out[:size],
        held_out[size:],
    )  # the weights kept are chosen on the second, judged on the first
    if model is None:
        policy = _base(folder, scale, report, console)
    else:
        from llmlab.runs.folder import find_model

        policy = find_model(model)
    tuned = _sft(folder, policy, scale, test, validation, report, console)
    aligned = _grpo(folder, tuned, scale, test, validation, report, console)
    _dpo(folder, tuned, scale, test, validation, report, console)
    _finish(folder, aligned, len(test), report, time.perf_counter() - began, (console, out or LabConsole()))
    return Path(aligned)


def _base(folder: Path, scale: Scale, report: Report, console: Console) -> str:
    from llmlab.data.packed_text import document_texts
    from llmlab.data.tokenizer import save_tokenizer, train_tokenizer

    console.rule("1 of 4: tokenizer and base training on Moby-Dick")
    source = SourceConfig(name="llmlab:moby-dick")
    tokenizer = train_tokenizer(document_texts(source), 1024)
    save_tokenizer(tokenizer, folder / "tokenizer")
    shape = ModelConfig(
        tokenizer_name=str(folder / "tokenizer"),
        vocab_size=len(tokenizer),
        d_model=160,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_ff=432,
        max_seq_len=256,
    )
    save_config(shape, folder / "model.json")
    steps = scale.steps(220)
    config = PretrainConfig(
        model=str(folder / "model.json"),
        datasets=[source],
        eval_fraction=0.05,
        max_steps=steps,
        optimizer="muon",
        learning_rate=1e-2,
        warmup_steps=min(20, steps // 5),
        batch_size=16,
        gradient_accumulation_steps=1,
        eval_every=max(1, steps // 4),
        save_every=steps,
        seed=scale.seed,
        output_dir=str(folder / "base"),
        report_to=[],
    )
    result = _run(config, folder / "base.json", report, console)
    _figure(report, "base", "bits per byte", result.metrics, "eval_bits_per_byte")
    for line in (json.loads(text) for text in (result.folder / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            report.losses.append((line["step"], line["loss"]))
        if "eval_loss" in line:
            report.held_out.append((line["step"], line["eval_loss"]))
    return str(result.model)


def _sft(
    folder: Path,
    policy: str,
    scale: Scale,
    test: list[Question],
    validation: list[Question],
    report: Report,
    console: Console,
) -> str:
    console.rule("2 of 4: supervised fine-tuning on questions and answers, every other answer as a sentence")
    steps = scale.steps(16 if scale.small else 300)
    rows = itertools.islice(
        questions(scale.seed, held_out=False), 2000 if scale.small else scale.rows(40_000)
    )
    styled = ((q, a if number % 2 else SENTENCE.format(a)) for number, q, a in _alternating(rows))
    _write_rows(folder / "sft.jsonl", [{"prompt": q, "completion": a} for q, a in styled])
    _write_rows(folder / "test.jsonl", [{"task": t, "prompt": q, "completion": a} for t, q, a in test])
    _write_rows(folder / "validation.jsonl", [{"prompt": q, "completion": a} for _, q, a in validation])
    small: dict[str, Any] = dict(adapter="lora", learning_rate=5e-4, batch_size=2, max_length=256)
    own: dict[str, Any] = dict(optimizer="muon", learning_rate=4e-3, batch_size=16, max_length=256)
    config = SFTConfig(
        policy_checkpoint=policy,
        datasets=[SourceConfig(name=str(folder / "sft.jsonl"))],
        eval_datasets=[SourceConfig(name=str(folder / "validation.jsonl"))],
        max_steps=steps,
        warmup_steps=min(20, steps // 5),
        gradient_accumulation_steps=1,
        eval_every=max(1, steps // 2),
        save_every=steps,
        seed=scale.seed,
        output_dir=str(folder / "sft"),
        report_to=[],
        **(small if scale.small else own),
    )
    before = _answers(policy, test, console)
    result = _run(config, folder / "sft.json", report, console)
    after = _answers(str(result.model), test, console)
    _compare(report, "SFT", before, after)
    return str(result.model)


def _alternating(rows: Iterator[Question]) -> Iterator[tuple[int, str, str]]:
    """Yields how many questions of its task came before each question, the question, and its answer."""
    seen: Counter[str] = Counter()
    for task, question, answer in rows:
        yield seen[task], question, answer
        seen[task] += 1


def in_either_style(answer: str, prediction: str) -> bool:
    """Returns whether an answer is the right one, bare or as a sentence."""
    return prediction in (answer, SENTENCE.format(answer))


def _compare(report: Report, stage: str, before: Answers, after: Answers) -> None:
    """Adds how many answers are right to the letter, and how many in either style."""
    report.rows.append((stage, "exact match", before.accuracy, after.accuracy))
    report.rows.append((stage, "right in either style", _either_style(before), _either_style(after)))


def _either_style(answers: Answers) -> float:
    """Returns the share of answers that are right, bare or as a sentence."""
    return sum(in_either_style(answer, prediction) for _, _, answer, prediction in answers.rows) / len(
        answers.rows
    )


def _grpo(
    folder: Path,
    policy: str,
    scale: Scale,
    test: list[Question],
    validation: list[Question],
    report: Report,
    console: Console,
) -> str:
    console.rule(
        "3 of 4: reward training (GRPO); an answer is worth 1 when it is right to the letter, else 0"
    )
    steps = scale.steps(4 if scale.small else 60)
    rows = itertools.islice(
        questions(scale.seed + 1, held_out=False), 400 if scale.small else scale.rows(8000)
    )
    _write_rows(folder / "prompts.jsonl", [{"prompt": q, "answer": a} for _, q, a in rows])
    _write_rows(folder / "prompts_validation.jsonl", [{"prompt": q, "answer": a} for _, q, a in validation])
    small: dict[str, Any] = dict(
        adapter="lora", learning_rate=1e-4, batch_size=16, mini_batch_size=8, group_size=4
    )
    own: dict[str, Any] = dict(learning_rate=3e-4, batch_size=128, mini_batch_size=64, group_size=8)
    config = GRPOConfig(
        policy_checkpoint=policy,
        datasets=[SourceConfig(name=str(folder / "prompts.jsonl"))],
        eval_datasets=[SourceConfig(name=str(folder / "prompts_validation.jsonl"))],
        reward_model=[RewardSource(name="exact_match")],
        beta=0.0,
        iterations=1,
        max_steps=steps,
        warmup_steps=min(5, steps // 5),
        max_new_tokens=LONGEST,
        max_prompt_length=96,
        eval_every=max(1, steps // 2),
        save_every=steps,
        seed=scale.seed,
        output_dir=str(folder / "grpo"),
        report_to=[],
        **(small if scale.small else own),
    )
    before = _answers(policy, test, console)
    result = _run(config, folder / "grpo.json", report, console)
    after = _answers(str(result.model), test, console)
    _compare(report, "GRPO", before, after)
    seen: dict[str, tuple[str, str, str]] = {}
    for task, question, answer, prediction in after.rows:
        seen.setdefault(task, (question, answer, prediction))
    report.samples = list(seen.values())[:3]
    return str(result.model)


def _dpo(
    folder: Path,
    policy: str,
    scale: Scale,
    test: list[Question],
    validation: list[Question],
    report: Report,
    console: Console,
) -> None:
    console.rule("4 of 4: for comparison, preference training (DPO) of the SFT model")
    from llmlab.evaluation.pairs import preference_accuracy

    train = list(
        itertools.islice(questions(scale.seed + 2, held_out=False), 48 if scale.small else scale.steps(4000))
    )
    pairs = _own_mistakes(policy, train, console)
    test_pairs = _own_mistakes(policy, test, console, at_least=1)
    _write_rows(
        folder / "dpo.jsonl",
        [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs],
    )
    _write_rows(
        folder / "dpo_test.jsonl",
        [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in test_pairs],
    )
    chosen_on = _own_mistakes(policy, validation, console, at_least=1)
    _write_rows(
        folder / "dpo_validation.jsonl",
        [dict(zip(("prompt", "chosen", "rejected"), p, strict=True)) for p in chosen_on],
    )
    steps = scale.steps(8 if scale.small else 80)
    small: dict[str, Any] = dict(adapter="lora", learning_rate=5e-5, batch_size=4, mini_batch_size=2)
    own: dict[str, Any] = dict(learning_rate=1e-4, batch_size=64, mini_batch_size=64)
    config = DPOConfig(
        policy_checkpoint=policy,
        datasets=[SourceConfig(name=str(folder / "dpo.jsonl"))],
        eval_datasets=[SourceConfig(name=str(folder / "dpo_validation.jsonl"))],
        beta=0.3,
        max_steps=steps,
        warmup_steps=min(10, steps // 5),
        max_length=128,
        max_prompt_length=96,
        eval_every=max(1, steps // 2),
        save_every=steps,
        seed=scale.seed,
        output_dir=str(folder / "dpo"),
        report_to=[],
        **(small if scale.small else own),
    )
    before, model, tokenizer = _answers(policy, test, console, keep=True)
    ranked_before = preference_accuracy(model, tokenizer, test_pairs)
    result = _run(config, folder / "dpo.json", report, console)
    after, model, tokenizer = _answers(str(result.model), test, console, keep=True)
    _compare(report, "DPO", before, after)
    report.rows.append(
        ("DPO", "preference accuracy", ranked_before, preference_accuracy(model, tokenizer, test_pairs))
    )


def _own_mistakes(
    policy: str, rows: list[Question], console: Console, at_least: int = 32
) -> list[tuple[str, str, str]]:
    """Returns (question, bare right answer, another answer of the model's own), sampled at temperature 1."""
    from llmlab.evaluation.answers import answer
    from llmlab.models.load import load_model

    model, tokenizer = load_model(policy)
    console.print(
        f"asking the fine-tuned model {len(rows):,} questions; those not wanted become the rejected answers"
    )
    answers = answer(model, tokenizer, rows, batch_size=256, max_new_tokens=LONGEST, temperature=1.0)
    pairs = [
        (question, correct, wrong)
        for _, question, correct, wrong in answers.rows
        if wrong and wrong != correct
    ]
    if len(pairs) < at_least:  # a model that is nearly always right: answers to other questions stand in
        shifted = zip(rows, rows[1:] + rows[:1], strict=True)
        pairs += [(q, correct, other) for (_, q, correct), (_, _, other) in shifted if other != correct]
    return pairs


def _answers(policy: str, test: list[Question], console: Console, *, keep: bool = False) -> Any:
    from llmlab.data.tokenizer import ensure_chat_template
    from llmlab.evaluation.answers import answer
    from llmlab.models.load import load_model, stop_at_turn_ends

    model, tokenizer = load_model(policy)
    ensure_chat_template(tokenizer)
    stop_at_turn_ends(model, tokenizer)
    answers = answer(model, tokenizer, test, batch_size=128, max_new_tokens=LONGEST)
    console.print(
        f"{Path(policy).parent.name or policy}: {answers.accuracy:.1%} of {len(test)} held-out questions"
        " right"
    )
    return (answers, model, tokenizer) if keep else answers


def _run(config: Any, file: Path, report: Report, console: Console) -> Any:
    from llmlab.libraries import importing

    with importing():
        from llmlab.training.engine.job import exit_code
        from llmlab.training.engine.run import run
    from llmlab.ui.reporters import run_reporter

    save_config(config, file)
    result = run(config, reporter=run_reporter(console))
    if result.stopped_by:
        console.print(f"stopped; to resume: `llmlab run {file}`")
        sys.exit(exit_code(result))
    report.minutes[config.KIND] = result.seconds / 60
    return result


RECORD_FILE = "quickstart.json"  # the figures, in its folder


def _figure(report: Report, stage: str, name: str, metrics: dict[str, float], key: str) -> None:
    report.rows.append((stage, name, metrics.get("before_" + key, math.nan), metrics[key]))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _finish(
    folder: Path, policy: str, asked: int, report: Report, seconds: float, consoles: tuple[Console, Console]
) -> None:
    from llmlab.ui.curves import curve_drawing
    from llmlab.ui.units import duration

    console, out = consoles
    if report.losses:
        console.print("\nbase training: loss over steps", highlight=False)
        width, height = min(console.width, 100), 12
        console.print(
            curve_drawing(report.losses, report.held_out, width, height), highlight=False, soft_wrap=True
        )
    if report.samples:
        samples = Table(
            "question", "right", "model says", title="three held-out questions", title_justify="left"
        )
        for row in report.samples:
            samples.add_row(*row)
        console.print(samples)
    table = Table("stage", "held-out figure", "before", "after", title="quickstart", title_justify="left")
    for stage, figure, before, after in report.rows:
        shown = ".3f" if figure == "bits per byte" else ".1%"
        table.add_row(stage, figure, format(before, shown), format(after, shown))
    out.print(table)
    unbroken = not out.is_terminal  # what reads a pipe breaks lines itself
    out.print(STYLES, highlight=False, soft_wrap=unbroken)
    half = 1.96 * math.sqrt(0.25 / asked)
    uncertainty = (
        f"{asked} held-out questions: 95 % of such shares are within +-{half:.1%} or less of the true one"
    )
    out.print(
        f"{uncertainty}. GRPO and DPO both start from the SFT model.", highlight=False, soft_wrap=unbroken
    )
    figures = [{"stage": s, "figure": f, "before": b, "after": a} for s, f, b, a in report.rows]
    record = {"figures": figures, "minutes": report.minutes, "seconds": round(seconds, 1), "model": policy}
    write_text_atomically(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    configs = [
        f"{name}.json" for name in ("base", "sft", "grpo", "dpo") if (folder / f"{name}.json").exists()
    ]
    out.print(
        f"took {duration(seconds)}; configs to replay are in {folder}: {', '.join(configs)}", highlight=False
    )
    out.print(f"talk to it:  llmlab chat {folder / 'grpo'}", highlight=False, soft_wrap=True)

"""A run proposed from what a person has and wants: method, adapter, batch, length, epochs. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmlab.config import MODEL_PRESETS, preset
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.loader import apply_changes
from llmlab.config.training import TrainingConfig
from llmlab.planning.data_size import data_size
from llmlab.planning.duration import DataSize, TimePlan, time_plan
from llmlab.planning.fit import USUAL, FitRow, Question, best, config_of, fit_rows, model_shape
from llmlab.planning.largest import TOKENS
from llmlab.planning.machines import Machine
from llmlab.planning.parameters import count_parameters

Have = Literal["text", "answers", "pairs", "prompts"]
# the method that learns from what a person has
METHOD: dict[Have, str] = {"text": "pretrain", "answers": "sft", "pairs": "dpo", "prompts": "grpo"}
# passes over the data that published recipes make: Llama 2's SFT 2, Alpaca 3, Zephyr's DPO 1 to 3; a second
# pass over text is nearly as good as new text up to the fourth (Muennighoff et al. 2023)
PASSES: dict[str, float] = {"pretrain": 1, "sft": 3, "dpo": 1}
MOST_PASSES = 4
FEW_UPDATES, LEAST_ROWS = 300, 8
A_DAY = 24 * 3600.0
BYTES_A_TOKEN = 4.0  # of English text, where the tokenizer is not here


@dataclass(frozen=True)
class Proposal:
    """A run that fits.

    Attributes:
        question: what was asked of the machine.
        rows: what was looked at: all weights, LoRA, QLoRA.
        chosen: the one of them that is proposed; None where nothing fits.
        config: of the run; None where nothing fits.
        data: how much there is to train on; None where it is not counted.
        time: of the run; None where nothing fits.
    """

    question: Question
    rows: tuple[FitRow, ...]
    chosen: FitRow | None
    config: TrainingConfig | None
    data: DataSize | None
    time: TimePlan | None


@dataclass(frozen=True)
class NewModel:
    """A shape of which a new model could be.

    Attributes:
        name: of its preset.
        parameters: of it.
        tokens: that it would read: the best use of compute, or all that the text gives.
        enough: whether the text gives the best use of compute.
        proposal: of the run.
    """

    name: str
    parameters: int
    tokens: float
    enough: bool
    proposal: Proposal


def propose(question: Question, shapes: tuple[str, ...]) -> Proposal:
    """Returns the most capable run of a method that fits, with the passes that are usual.

    Args:
        question: with one method.
        shapes: of rows that the method learns from.

    Raises:
        LabError: when the model's shape is not known, or an option does not suit the method.
    """
    (kind,) = question.methods
    length = min(USUAL, model_shape(question.model).longest or USUAL)
    plain = config_of(question, kind, "none", length, 1, False)
    data = data_size(plain, shapes, bytes_a_token=BYTES_A_TOKEN) if question.sources else None
    rows = tuple(fit_rows(question, {kind: data} if data else {}))
    chosen = best(list(rows))
    config = chosen.config if chosen else None
    if config is not None and kind in PASSES:
        config = apply_changes(config, {"epochs": PASSES[kind], "warmup_ratio": 0.03})
        config = with_updates(config, data)
    time = time_plan(config, data, question.machine) if config else None
    return Proposal(question, rows, chosen, config, data, time)


def with_updates(config: TrainingConfig, data: DataSize | None) -> TrainingConfig:
    """Returns the config with fewer rows an update where it would make few updates of little data."""
    if data is None or config.epochs is None:
        return config
    devices = config.devices * config.nodes
    rows = config.micro_batch_size * config.accumulation_steps
    wanted = data.rows * config.epochs / FEW_UPDATES / devices
    fewer = max(LEAST_ROWS // devices, 1, 1 << max(0, int(wanted).bit_length() - 1))
    if fewer >= rows:
        return config
    size = min(config.micro_batch_size, fewer)
    if isinstance(config, AccumulatedBatches):
        return apply_changes(config, {"batch_size": size, "gradient_accumulation_steps": fewer // size})
    return apply_changes(config, {"batch_size": fewer, "mini_batch_size": size})


def new_models(machine: Machine, devices: int, source: str, shapes: tuple[str, ...]) -> Iterator[NewModel]:
    """Yields the presets that fit a machine, smallest first, each with a run on a text.

    Args:
        machine: to train on.
        devices: of it.
        source: of the text.
        shapes: of rows that base training learns from.
    """
    counts = {name: count_parameters(preset(name)).total for name in MODEL_PRESETS}
    for name, parameters in sorted(counts.items(), key=lambda item: item[1]):
        shape = preset(name)
        question = Question(
            name, machine, devices, ("pretrain",), (shape.max_seq_len,), sources=(source,) if source else ()
        )
        proposal = propose(question, shapes)
        if proposal.config is None:
            return
        best_use = float(TOKENS * parameters)
        there = proposal.data.tokens if proposal.data and proposal.data.tokens else None
        tokens = min(best_use, MOST_PASSES * there) if there else best_use
        config: TrainingConfig = proposal.config
        if there:
            config = apply_changes(config, {"epochs": round(max(0.01, tokens / there), 2)})
            config = with_updates(config, proposal.data)
        time = time_plan(config, proposal.data, machine)
        proposal = Proposal(question, proposal.rows, proposal.chosen, config, proposal.data, time)
        yield NewModel(name, parameters, tokens, there is None or best_use <= MOST_PASSES * there, proposal)


def recommended(models: list[NewModel]) -> NewModel | None:
    """Returns the largest model whose text is enough and that is done in a day; else the smallest."""
    good = [
        model
        for model in models
        if model.enough and (model.proposal.time is None or (model.proposal.time.seconds or 0) < A_DAY)
    ]
    return good[-1] if good else models[0] if models else None

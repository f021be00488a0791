"""Options that every training method shares: optimizer, validations, checkpoints, records."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from llmlab.config.hardware import HardwareOptions
from llmlab.config.options import option, option_info
from llmlab.config.watching import WatchOptions

NEWEST = "newest"  # as the name of a model: that of the newest run whose result fits
ADAM_PARTS = ["adamw", "muon"]  # Muon hands what is not a hidden matrix to AdamW

OPTIMIZERS = {
    "adamw": "the safe choice; two extra values per weight",
    "adafactor": "factored second moments: nearly no extra memory",
    "lion": "sign updates, one extra value per weight; wants a learning rate 3 to 10 times smaller",
    "sophia": "clipped second-order updates with a Gauss-Newton estimate every 10 steps",
    "muon": "orthogonalised updates for hidden matrices, AdamW for the rest: fast in base training",
}
# Sophia's curvature is that of a next-token loss; methods with another loss have no estimate of it
FirstOrder = Literal["adamw", "adafactor", "lion", "muon"]


INTERVAL = 500  # steps between two validations, and between two checkpoints, of a run that is long enough
PARTS, SHORTEST = 4, 10  # validations of a shorter one at least, and the steps between two of them at least

ModelSort = Literal["base", "policy", "scorer", "dual_head"]
Bounds = tuple[float, float]


class RunOptions(WatchOptions):
    """Data, length, updates, validations, checkpoints and records: the options of every run."""

    optimizer: Literal["adamw", "adafactor", "lion", "sophia", "muon"] = option(
        "adamw",
        "Optimizer",
        "How gradients become updates.",
        choices=OPTIMIZERS,
        resume_note="its state is reset; weights, data position and step are kept",
    )
    learning_rate: float = option(
        3e-4,
        "Learning rate",
        "Size of the updates at the peak of the schedule.",
        typical="1e-5 to 1e-3",
        gt=0,
        aliases=["lr"],
        resume_note="the schedule continues with it",
    )
    weight_decay: float = option(
        0.1,
        "Weight decay",
        "Decay of the weights towards zero; not applied to norms, biases and embeddings.",
        advanced=True,
        ge=0,
    )
    adam_beta1: float = option(
        0.9,
        "Adam beta 1",
        "Decay rate of the first moment (the mean gradient).",
        applies_when={"optimizer": ADAM_PARTS},
        advanced=True,
        ge=0,
        lt=1,
    )
    adam_beta2: float = option(
        0.95,
        "Adam beta 2",
        "Decay rate of the second moment (the squared gradient).",
        applies_when={"optimizer": ADAM_PARTS},
        advanced=True,
        ge=0,
        lt=1,
    )
    adam_eps: float = option(
        1e-8,
        "Adam epsilon",
        "Added to the denominator.",
        applies_when={"optimizer": ADAM_PARTS},
        advanced=True,
        gt=0,
    )
    lion_beta1: float = option(
        0.9,
        "Lion beta 1",
        "Weight of the momentum in the update.",
        applies_when={"optimizer": ["lion"]},
        advanced=True,
        ge=0,
        lt=1,
    )
    lion_beta2: float = option(
        0.99,
        "Lion beta 2",
        "Decay rate of the momentum.",
        applies_when={"optimizer": ["lion"]},
        advanced=True,
        ge=0,
        lt=1,
    )
    muon_momentum: float = option(
        0.95,
        "Muon momentum",
        "Decay rate of Muon's momentum.",
        applies_when={"optimizer": ["muon"]},
        advanced=True,
        ge=0,
        lt=1,
    )
    muon_nesterov: bool = option(
        True, "Muon Nesterov", "Use Nesterov momentum.", applies_when={"optimizer": ["muon"]}, advanced=True
    )
    max_grad_norm: float = option(
        1.0, "Gradient clipping", "Largest norm of the gradient.", advanced=True, gt=0, aliases=["grad_clip"]
    )
    out_of_memory: Literal["stop", "halve"] = option(
        "stop",
        "Out of memory",
        "What to do when the device is full in the middle of an update.",
        choices={
            "stop": "stop and say what to change",
            "halve": "halve the micro-batch, double the accumulation and continue: the same effective batch",
        },
        advanced=True,
        resume="silent",
    )
    max_skipped_steps: int = option(
        3,
        "Skipped updates",
        "Updates in a row that may be skipped because loss or gradients are not finite; then the run stops.",
        unit="steps",
        advanced=True,
        ge=0,
        resume="silent",
    )
    eval_every: int = option(
        INTERVAL,
        "Validate every",
        f"Steps between two validations; {INTERVAL}, the default, is at most a quarter of the run.",
        unit="steps",
        ge=1,
        resume="silent",
    )
    patience: int | None = option(
        None,
        "Patience",
        "Validations in a row without a better figure (`metric_for_best`) after which the run ends. Left out,"
        " it goes on to its last step.",
        unit="validations",
        typical="3 to 10",
        advanced=True,
        ge=1,
        le=10_000,
        resume="silent",
        aliases=["early_stopping_patience"],
    )
    eval_rows: int = option(
        200,
        "Validation rows",
        "Held-out rows that a validation reads, of each source: the first so many, whatever the batch size."
        " In its place `eval_steps` is accepted: so many micro-batches.",
        unit="rows",
        advanced=True,
        ge=1,
        resume="silent",
    )
    sample_tokens: int = option(
        48,
        "Sample",
        "Tokens generated from a held-out prompt at every validation and kept in `samples.jsonl`; 0 turns it"
        " off.",
        unit="tokens",
        advanced=True,
        ge=0,
        le=100_000,
        resume="silent",
    )
    log_every: int = option(
        10,
        "Log every",
        "Steps between two logged figures; the first step is logged by itself.",
        unit="steps",
        advanced=True,
        ge=1,
        resume="silent",
    )
    save_every: int = option(
        INTERVAL,
        "Save every",
        f"Steps between two checkpoints to resume from; {INTERVAL}, the default, is at most a quarter of it.",
        unit="steps",
        advanced=True,
        ge=1,
        resume="silent",
    )
    save_total_limit: int = option(
        3, "Checkpoints to keep", "Checkpoints kept for resuming.", advanced=True, ge=1, resume="silent"
    )
    save_best_only: bool = option(
        True,
        "Keep the best only",
        "The run's result is the weights with the lowest validation loss, or the best `metric_for_best`"
        " (`best/`); false also keeps the last (`final/`).",
        advanced=True,
        resume="silent",
    )
    seed: int = option(
        42,
        "Seed",
        "Seed of all random numbers: the same seed gives the same run.",
        advanced=True,
        ge=0,
        le=2**32 - 1,  # numpy's bound
        resume_note="the order of the rows changes, so some repeat and some are missed",
    )
    dataloader_workers: int = option(
        0,
        "DataLoader workers",
        "Processes that prepare batches beside the training process; 0 uses none.",
        advanced=True,
        ge=0,
        le=256,
        resume="silent",
    )
    deterministic: bool = option(
        False, "Deterministic", "Use deterministic kernels only; slower.", advanced=True
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = option(
        lambda: ["tensorboard"],
        "Report to",
        "Where metrics are reported besides the run folder.",
        advanced=True,
        resume="silent",
    )
    output_dir: str | None = option(
        None,
        "Output folder",
        "Folder of the run; left out, `checkpoints/<name>`.",
        advanced=True,
        min_length=1,
        resume="silent",
    )

    @property
    def eval_interval(self) -> int:
        """Steps between two validations of a run of this length."""
        return self._interval(self.eval_every)

    @property
    def evaluate_interval(self) -> int:
        """Steps between two evaluations on the suite."""
        return self.evaluate_every or self.eval_interval

    @property
    def save_interval(self) -> int:
        """Steps between two checkpoints of a run of this length."""
        return self._interval(self.save_every)

    def _interval(self, steps: int) -> int:
        """Returns what was asked for; the default only where the run is long enough for it."""
        return steps if steps != INTERVAL else min(steps, max(SHORTEST, math.ceil(self.max_steps / PARTS)))

    @model_validator(mode="after")
    def _check_patience(self) -> RunOptions:
        if self.patience is not None and not (self.holds_out or self.suite_metric):
            raise ValueError(
                "`patience` counts validations, and nothing is held out: set `eval_fraction` or"
                " `eval_datasets`, or `metric_for_best` to a figure of `evaluation_suite`"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _rows_from_batches(cls, data: Any) -> Any:
        """Takes `eval_steps`, batches of a validation, from configs that count so."""
        if not isinstance(data, dict) or "eval_steps" not in data:
            return data
        if "eval_rows" in data:
            raise ValueError(
                "`eval_steps` (in batches) and `eval_rows` set the same thing: set only one of them"
            )
        data = dict(data)
        batches = data.pop("eval_steps")
        size = "mini_batch_size" if "mini_batch_size" in cls.model_fields else "batch_size"
        names = (size, *option_info(cls.model_fields[size]).aliases)
        rows = next((data[name] for name in names if name in data), cls.model_fields[size].default)
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (batches, rows))
        data["eval_rows"] = batches * rows if whole else batches
        return data


class TrainingConfig(HardwareOptions, RunOptions):
    """What all methods have in common.

    Attributes:
        METHOD: names the method in the name of a run.
        STARTS_FROM: the option that names the model to begin with.
        STARTS_FROM_MODELS: the sorts of models that it can begin with.
        MAKES: the sort of model that it makes.
        USUAL_RATES: the learning rates that published recipes lie within, of whole models and of adapters.
    """

    METHOD: ClassVar[str] = ""
    STARTS_FROM: ClassVar[str] = "policy_checkpoint"
    STARTS_FROM_MODELS: ClassVar[tuple[ModelSort, ...]] = ("policy",)
    MAKES: ClassVar[ModelSort] = "policy"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((1e-6, 3e-4), (2e-5, 1e-3))

    @property
    def usual_rates(self) -> Bounds:
        """The learning rates that published recipes of such a run lie within."""
        return self.USUAL_RATES[getattr(self, "adapter", "none") != "none"]

    @property
    def micro_batch_size(self) -> int:
        """Rows on one device in one forward pass; `config/batches.py` has the two ways to say it."""
        raise NotImplementedError

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes per optimizer step."""
        raise NotImplementedError

    def steps_of_a_pass(self, rows: int, processes: int) -> int:
        """Returns the updates that take every row once; the last of them takes what is left."""
        return math.ceil(rows / (self.micro_batch_size * self.accumulation_steps * processes))


def first_order_option() -> Any:
    """Returns the option `optimizer` of a method whose loss is no next-token loss;
    its type is `FirstOrder`.
    """
    choices = {name: advice for name, advice in OPTIMIZERS.items() if name != "sophia"}
    return option("adamw", "Optimizer", "How gradients become updates.", choices=choices)


class LengthOptions(TrainingConfig):
    """What happens to rows that are longer than `max_length`."""

    on_overflow: Literal["cut", "drop"] = option(
        "cut",
        "On overflow",
        "What happens to rows longer than `max_length`; they are counted either way.",
        choices={"cut": "they are truncated at their end", "drop": "they are left out"},
        advanced=True,
        aliases=["overlong"],
    )

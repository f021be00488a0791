"""`kind: "evaluation"`: what a model is measured on, beside which other one, and how it answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from llmlab.config.base import KindConfig, LabBaseConfig
from llmlab.config.harness import HarnessOptions
from llmlab.config.judges import check_judge, judged_by_reference
from llmlab.config.loading import LoadOptions
from llmlab.config.options import LARGEST, option
from llmlab.config.rewards import RewardSource
from llmlab.config.sources import SourceConfig
from llmlab.config.training import NEWEST
from llmlab.titles import TITLES

PARENT = "parent"  # as the name of a model: what the evaluated one was trained from
STANDARD = "standard"  # the suite that is taken where nothing is named
HOW = {
    "score": "the likeliest label or answer; nothing is generated",
    "generate": "what the model says, compared with the reference to the letter",
}


class TaskOptions(LabBaseConfig):
    """How the rows of a source are measured; what is measured follows from their shape."""

    by: Literal["score", "generate"] = option(
        "score", "Measure by", "How a label or an answer is found.", choices=HOW
    )
    rewards: list[RewardSource] = option(
        list,
        "Rewards",
        "Answers are generated and scored by these; left empty, rows are measured by their own answers.",
    )
    judge: str | None = option(
        None,
        "Judge",
        "What says whether each answer is supported by the text of its prompt: a model, a served one"
        " (`http://127.0.0.1:8000#NAME`), or `reference`: to the letter.",
        applies_when={"by": ["generate"]},
        advanced=True,
        min_length=1,
    )
    max_new_tokens: int | None = option(
        None,
        "Max new tokens",
        "Of a generated answer; left out, as long as the longest reference, 256 with rewards.",
        unit="tokens",
        advanced=True,
        ge=1,
        le=LARGEST,
    )
    max_length: int | None = option(
        None,
        "Max length",
        "Tokens of a text or conversation that are read at once; left out, 1,024 or the context length.",
        unit="tokens",
        advanced=True,
        ge=2,
        le=LARGEST,
    )
    stride: int | None = option(
        None,
        "Stride",
        "From one window of a text to the next; left out, half a window.",
        unit="tokens",
        advanced=True,
        ge=1,
        le=LARGEST,
    )
    group_by: str | None = option(
        None,
        "Rows that belong together",
        "A column: rows of one value are drawn together for the intervals, as questions on one text.",
        advanced=True,
        min_length=1,
    )

    held_out: float = option(
        0.0,
        "Held-out share",
        "Only the rows that training with this `eval_fraction` holds out are measured; 0 for all rows.",
        advanced=True,
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _check_rewards(self) -> TaskOptions:
        if self.rewards and self.by != "score":
            raise ValueError("with `rewards` answers are always generated: leave out `by`")
        if self.judge:
            check_judge(self.judge)
        return self


class Task(TaskOptions):
    """A source and how its rows are measured: one line of a suite."""

    source: SourceConfig = option(..., "Source", "Whose rows are measured.")


class Suite(HarnessOptions):
    """A named list of tasks, and of benchmarks beside them, in a JSON or YAML file or shipped."""

    title: str = option("", "Title", "What the suite is about.")
    tasks: list[Task] = option(list, "Tasks", "What is measured, in order.")

    @model_validator(mode="after")
    def _check_something(self) -> Suite:
        if not self.tasks and not self.harness:
            raise ValueError("a suite names `tasks` or benchmarks (`harness`), and this one neither")
        return self


class EvaluatedOptions(KindConfig):
    """Which model is measured, beside which other one, on what."""

    model: str = option(
        NEWEST,
        "Model",
        "What is measured: a run, a folder, a hub id or a GGUF file; `newest` is the newest run.",
        min_length=1,
    )
    against: str | None = option(
        None,
        "Against",
        f"Another model on the same rows, for the difference; `{PARENT}` is what the model was trained from.",
        min_length=1,
    )
    suite: str | None = option(
        None,
        "Suite",
        "A named list of tasks, or a JSON or YAML file of your own; where nothing else is named:"
        f" `{STANDARD}`.",
        min_length=1,
    )
    datasets: list[SourceConfig] = option(
        list, "Datasets", "Further sources, measured as the options here say.", aliases=["sources"]
    )


def _listed(value: Any) -> Any:
    """Returns a source that stands alone as a list of it."""
    return [value] if isinstance(value, (str, dict)) else value


class EvaluationConfig(LoadOptions, TaskOptions, HarnessOptions, EvaluatedOptions):
    """Measure a model on rows that it has not seen; the answers are kept, with how sure the figures are."""

    KIND: ClassVar[str] = "evaluation"
    TITLE: ClassVar[str] = TITLES["evaluation"]
    STARTS_FROM: ClassVar[str] = "model"
    kind: Literal["evaluation"] = "evaluation"

    name: str | None = option(
        None,
        "Name",
        "Folder name of the evaluation; left out, it is made from the model and what is measured.",
        pattern=r"^[\w.+-]+$",
    )
    temperature: float = option(
        0.0, "Temperature", "Of generated answers; 0 always takes the likeliest token.", advanced=True, ge=0
    )
    top_p: float = option(
        1.0,
        "Top-p",
        "Sample among the likeliest tokens that make up this probability.",
        advanced=True,
        gt=0,
        le=1,
    )
    top_k: int = option(
        0, "Top-k", "Sample among this many likeliest tokens; 0 for all.", advanced=True, ge=0
    )
    repeats: int = option(
        1,
        "Answers a prompt",
        "Drawn with seeds one after the other, for a mean and its spread; needs a temperature.",
        advanced=True,
        ge=1,
        le=1000,
    )
    seed: int = option(0, "Seed", "Of sampled answers and of the intervals' resamples.", advanced=True, ge=0)
    batch_size: int = option(
        16, "Batch size", "Rows at a time; figures do not depend on it.", unit="rows", advanced=True, ge=1
    )
    forgetting: bool = option(
        True,
        "Forgetting",
        "Also the loss on a general text, beside that of the model it was fine-tuned from.",
        advanced=True,
    )
    judge_check: Annotated[list[SourceConfig], BeforeValidator(_listed)] = option(
        list,
        "Labelled answers",
        "The judge's agreement with their labels is measured first; `llmlab:passage-claims` ships.",
        advanced=True,
    )
    judge_tokens: int = option(
        256,
        "Judge's answer",
        "Tokens that a served judge may answer with; more where it thinks first.",
        unit="tokens",
        advanced=True,
        ge=1,
        le=LARGEST,
    )
    gate: str | None = option(
        None,
        "Gate",
        "A JSON or YAML file of bounds; a figure beyond its bound ends the command with code 1.",
        advanced=True,
        min_length=1,
    )
    csv: bool = option(False, "CSV", "Also write the answers as a table, answers.csv.", advanced=True)
    output_dir: str = option(
        "evaluations", "Folder", "Where the folders of evaluations are.", advanced=True, min_length=1
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> EvaluationConfig:
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError(
                f"`repeats` {self.repeats} gives one answer {self.repeats} times: set a `temperature` above 0"
            )
        return self

    @model_validator(mode="after")
    def _check_labelled(self) -> EvaluationConfig:
        if self.judge_check and not self.suite and (not self.judge or judged_by_reference(self.judge)):
            raise ValueError("`judge_check` measures a `judge` that is a model, and none is named")
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> EvaluationConfig:
        if not self.harness or self.suite or self.datasets:
            return self
        for name in (*TaskOptions.model_fields, "temperature", "top_p", "top_k", "repeats"):
            field = type(self).model_fields[name]
            if getattr(self, name) != field.get_default(call_default_factory=True):
                raise ValueError(f"`{name}` is of sources; benchmarks say themselves how they are measured")
        return self

    def own_tasks(self) -> list[Task]:
        """Returns a task of each source that the config itself names."""
        how = {name: getattr(self, name) for name in TaskOptions.model_fields}
        return [Task(source=source, **how) for source in self.datasets]

"""A source of data: where rows come from, how they are read, and how large its share is."""

from __future__ import annotations

import math
import re
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from llmlab.config.base import LabBaseConfig, as_number
from llmlab.config.options import option

SHAPES = ("text", "messages", "prompt_completion", "preference", "prompt_answer", "prompt", "classification")
PARTS = (
    "text", "messages", "system", "prompt", "input", "completion", "chosen", "rejected", "answer", "label",
)  # fmt: skip  # the canonical names that `columns` may map


class SourceConfig(LabBaseConfig):
    """One dataset. In the wizard, and wherever a text is accepted,
    it is the line `name | subset | weight`.
    """

    LINE: ClassVar[tuple[str, ...]] = ("name", "subset", "weight")
    name: str = option(
        ...,
        "Name",
        "A hub id, a local file or folder (.txt .md .jsonl .json .csv .parquet .arrow, also .gz and .zst), or"
        " a shipped dataset: `llmlab:moby-dick`, `llmlab:spam-mails`; `llmlab:preferences` is what you judged"
        " in a chat.",
        min_length=1,
    )
    subset: str | None = option(None, "Subset", "The configuration of a hub dataset.")
    split: str = option("train", "Split", "Which split of a hub dataset to read.")
    weight: float = option(
        1.0, "Weight", "Share relative to the other sources, counted in rows; 0 only evaluates it.", ge=0
    )
    streaming: bool = option(
        False, "Streaming", "Read rows as they are needed, without a download of the whole."
    )
    max_rows: int | None = option(
        None,
        "Row limit",
        "Read at most this many rows, spread evenly over the source (the first ones of a stream).",
        ge=1,
    )
    format: Literal[
        "auto",
        "text",
        "messages",
        "prompt_completion",
        "preference",
        "prompt_answer",
        "prompt",
        "classification",
    ] = option(
        "auto",
        "Format",
        "The shape of its rows.",
        choices={
            "auto": "as the catalogue knows it, else recognised from the columns",
            "text": "a `text` column",
            "messages": "a `messages` column of role and content",
            "prompt_completion": (
                "`prompt` and `completion`, `instruction` and `output`, or `question` and `answer`"
            ),
            "preference": "`prompt`, `chosen` and `rejected`",
            "prompt_answer": "`prompt` and the reference `answer`, for rewards",
            "prompt": "a `prompt` alone, for rewards that need no reference answer",
            "classification": "a `text` and a `label` that becomes one of the label words",
        },
        advanced=True,
    )
    like: str | None = option(
        None,
        "Like",
        "Read it as the catalogue reads this dataset, `stanfordnlp/imdb` or `nyu-mll/glue/sst2`.",
        advanced=True,
    )
    columns: dict[str, str] | None = option(
        None,
        "Columns",
        f'Which column has which part, as {{"prompt": "frage"}}; the parts are {", ".join(PARTS)}.',
        advanced=True,
    )
    prompt: str | None = option(
        None,
        "Prompt",
        "Text of the prompt with columns in braces, as `Mail: {body}\\nVerdict:`.",
        advanced=True,
        min_length=1,
    )
    labels: list[str] | None = option(
        None,
        "Label words",
        "The word of each label of a classification, in the order of their numbers.",
        advanced=True,
    )
    bad_rows: Literal["stop", "drop"] = option(
        "stop",
        "Malformed rows",
        "What happens to rows with a missing column, a wrong type or roles in a wrong order.",
        choices={
            "stop": "the first one stops the run before training, and is named",
            "drop": "left out and counted",
        },
        advanced=True,
    )
    duplicates: Literal["keep", "drop"] = option(
        "keep",
        "Duplicates",
        "What happens to duplicate rows.",
        choices={"keep": "they stay, and are counted", "drop": "only the first stays"},
        advanced=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _from_line(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        name, *rest = (part.strip() for part in data.split("|"))
        if len(rest) > 2:
            raise ValueError(f"{data!r} has more than three parts: write `name | subset | weight`")
        parsed: dict[str, Any] = {"name": name}
        if rest and rest[0]:
            parsed["subset"] = rest[0]
        if len(rest) > 1 and rest[1]:
            try:
                parsed["weight"] = float(as_number(cls, "weight", rest[1]))
            except ValueError:
                raise ValueError(f"the weight {rest[1]!r} in {data!r} is not a number") from None
        return parsed

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        if not math.isfinite(self.weight):
            raise ValueError(f"`weight` {self.weight} is not a finite number")
        if unknown := sorted(set(self.columns or {}) - set(PARTS)):
            raise ValueError(
                f"`columns` has an unknown part {unknown[0]!r}: the parts are {', '.join(PARTS)}"
            )
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) != len(self.labels)):
            raise ValueError(f"`labels` {self.labels} are not two or more different words")
        if self.duplicates == "drop" and self.streaming:
            raise ValueError("`duplicates` cannot be dropped from a stream: its rows are not all known")
        return self

    def line(self) -> str:
        """Returns the source as one line of the wizard."""
        return (
            " | ".join([self.name, self.subset or "", f"{self.weight:g}"])
            if self.subset or self.weight != 1
            else self.name
        )

    def short(self) -> str:
        """Returns a name for figures and folders: `imdb`, `sst2`, `fineweb-2-fra_Latn`,
        the stem of a file.
        """
        stem = PurePath(self.name.split(":")[-1].rstrip("/")).name
        while PurePath(stem).suffix in (
            ".gz",
            ".zst",
            ".txt",
            ".md",
            ".jsonl",
            ".json",
            ".csv",
            ".parquet",
            ".arrow",
        ):
            stem = PurePath(stem).stem
        parts = [self.subset] if self.subset and stem == "glue" else [stem, self.subset or ""]
        return re.sub(r"[^\w.+-]+", "-", "-".join(part for part in parts if part)).strip("-")


def check_weights(sources: list[SourceConfig], where: str) -> None:
    """Refuses a mixture of nothing.

    Raises:
        ValueError: when all weights are 0.
    """
    if sources and not any(source.weight for source in sources):
        raise ValueError(
            f"`{where}` have weights that are all 0: give at least one of them a positive weight"
        )


def shares(sources: list[SourceConfig]) -> list[float]:
    """Returns the share of each source in the mixture; they add up to 1."""
    total = sum(source.weight for source in sources)
    return [source.weight / total for source in sources]


def short_names(sources: list[SourceConfig]) -> list[str]:
    """Returns a different short name for each source: `a`, `b`, `a-2`."""
    names: list[str] = []
    for source in sources:
        name, number = source.short(), 2
        while name in names:
            name, number = f"{source.short()}-{number}", number + 1
        names.append(name)
    return names


def mixture_name(sources: list[SourceConfig]) -> str:
    """Returns what a run is called after its data: the source, or `mix_imdb-70_sst2-30`."""
    if len(sources) == 1:
        return sources[0].short()
    parts = zip(short_names(sources), shares(sources), strict=True)
    return "_".join(["mix", *(f"{name}-{round(100 * share)}" for name, share in parts if share)])

"""A source of data: where rows come from, and how large its share is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from llmlab.config.base import LabBaseConfig
from llmlab.config.options import option


class SourceConfig(LabBaseConfig):
    """One dataset. In the wizard, and wherever a text is accepted, it is the line `name | subset | weight`."""

    name: str = option(
        ...,
        "Name",
        "A hub id, a local file or folder (.txt .md .jsonl .json .csv .parquet .arrow), or `llmlab:moby-dick`.",
        min_length=1,
    )
    subset: str | None = option(None, "Subset", "The configuration of a hub dataset.")
    split: str = option("train", "Split", "Which split of a hub dataset to read.")
    weight: float = option(1.0, "Weight", "Share relative to the other sources.", gt=0)
    streaming: bool = option(False, "Streaming", "Read rows as they are needed, without a download of the whole.")
    max_rows: int | None = option(None, "Row limit", "Read at most this many rows.", ge=1)
    format: Literal["auto", "text", "messages", "prompt_completion", "preference"] = option(
        "auto",
        "Format",
        "The shape of its rows.",
        choices={
            "auto": "recognised from the columns",
            "text": "a `text` column",
            "messages": "a `messages` column of role and content",
            "prompt_completion": "`prompt` and `completion`, `instruction` and `output`, or `question` and `answer`",
            "preference": "`prompt`, `chosen` and `rejected`",
        },
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
                parsed["weight"] = float(rest[1])
            except ValueError:
                raise ValueError(f"the weight {rest[1]!r} in {data!r} is not a number") from None
        return parsed

    def line(self) -> str:
        """Returns the source as one line of the wizard."""
        return " | ".join([self.name, self.subset or "", f"{self.weight:g}"]) if self.subset or self.weight != 1 else self.name

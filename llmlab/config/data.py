"""Which rows a run reads: its name, its datasets, and what of them is held out."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from llmlab.config.base import KindConfig
from llmlab.config.options import option
from llmlab.config.sources import SourceConfig, check_weights


class DataOptions(KindConfig):
    """Name, datasets and what is held out of them."""

    name: str | None = option(
        None,
        "Run name",
        "Folder name of the run; left out, it is made from model, data, method and time.",
        pattern=r"^[\w.+-]+$",
        resume="silent",
    )
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="llmlab:moby-dick")],
        "Datasets",
        "Where the training rows come from.",
        min_length=1,
        resume_note="the position continues by row number, so other rows follow than before",
    )
    eval_datasets: list[SourceConfig] = option(
        list, "Validation datasets", "Held-out rows; left empty, a part of the training rows is held out."
    )
    eval_fraction: float = option(
        0.02,
        "Held-out share",
        "Share of the training rows held out for validation when no validation dataset is given; 0 for none.",
        typical="0.01 to 0.1",
        advanced=True,
        ge=0,
        lt=1,
    )
    mixture_stop: Literal["first_exhausted", "all_exhausted"] = option(
        "first_exhausted",
        "Mixture ends",
        "When a pass over several sources ends.",
        choices={
            "first_exhausted": "with the first source that runs out: no row is seen twice in a pass",
            "all_exhausted": "when every row was seen: smaller sources are repeated",
        },
        advanced=True,
    )

    @model_validator(mode="after")
    def _check_mixture(self) -> DataOptions:
        check_weights(self.datasets, "datasets")
        return self

"""What trackio and wandb are told of a run beside its figures, and where it can be seen there."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder


class TrackerFacts(TrainerCallback):
    """Adds facts to the config that transformers' callbacks of trackio and wandb have begun, which come
    before this one.

    Args:
        services: "trackio", "wandb".
        facts: of the run.
        folder: of the run, whose record says where it can be seen.
    """

    def __init__(self, services: Sequence[str], facts: Mapping[str, float | str], folder: RunFolder):
        self.services, self.facts, self.folder = services, facts, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Adds them, in the main process."""
        if not state.is_world_process_zero:
            return
        seen: dict[str, str] = {}
        for name in self.services:
            service = importlib.import_module(name)
            change: dict[str, bool] = {"allow_val_change": True} if name == "wandb" else {}
            service.config.update({f"run/{key}": value for key, value in self.facts.items()}, **change)
            address = getattr(service.run, "url", None) if name == "wandb" else None
            seen |= {"wandb_url": str(address)} if address else {}
            seen |= {"trackio_project": args.project} if name == "trackio" else {}
        with suppress(LabError):  # a full disk
            self.folder.update(**seen)

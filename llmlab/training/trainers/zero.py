"""What a trainer does otherwise where DeepSpeed divides its model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llmlab.training.engine.zero import UpdateApart, stage_of, update
from llmlab.training.engine.zero_state import ZeroState
from llmlab.training.trainers.library import LibraryTrainer


class ZeroMixin(LibraryTrainer):
    """Updates that are skipped where they must be, and checkpoints that any engine reads, under DeepSpeed;
    nothing without it.
    """

    _suspects: tuple[str, ...]

    def zero_state(self) -> ZeroState:
        """Returns what DeepSpeed holds."""
        optimizer = self.deepspeed.optimizer
        return ZeroState(self.model, optimizer, stage_of(optimizer))

    @property
    def has_zero_engine(self) -> bool:
        """Whether DeepSpeed has the model by now."""
        return self.is_deepspeed_enabled and self.deepspeed is not None

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Prepares model and optimizer; under DeepSpeed reads the lab's checkpoint, not DeepSpeed's."""
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.accelerator.deepspeed_engine_wrapped = UpdateApart(self.deepspeed)
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint, self.model)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Returns the norm; under DeepSpeed the update is done here, which computes it."""
        if not self.is_deepspeed_enabled:
            return super()._get_grad_norm(model, grad_norm)
        bad = torch.tensor(float(bool(self._suspects)), device=self.args.device)
        skip = bool(self.accelerator.reduce(bad, "sum").item())
        learning = [p for p in self.model.parameters() if p.requires_grad]
        return update(self.deepspeed, learning, skip=skip)

    def own_weights(self) -> Iterator[torch.Tensor]:
        """Yields the weights that learn, or what this process has of them."""
        if self.has_zero_engine:
            yield from (flat for flat, _ in self.zero_state().pieces())
        else:
            yield from (p for p in self.model.parameters() if p.requires_grad)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves model and tokenizer; of a model that DeepSpeed has, the weights are in fp32, whatever the
        precision of the matrix products, which transformers would note.
        """
        super()._save(output_dir, state_dict)
        file = Path(output_dir or str(self.args.output_dir)) / "config.json"
        if self.has_zero_engine and file.is_file():
            file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "float32"}, indent=2) + "\n")

    def settings_in_effect(self) -> dict[str, Any]:
        """Returns the settings that DeepSpeed works by; empty without it."""
        if not self.has_zero_engine:
            return {}
        settings = dict(self.accelerator.deepspeed_plugin.deepspeed_config)
        settings.pop("steps_per_print", None)  # infinity, by which accelerate keeps DeepSpeed quiet
        return settings

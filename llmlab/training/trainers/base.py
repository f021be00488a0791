"""What every trainer of the lab does beside its method."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import RandomSampler

from llmlab.errors import LabError
from llmlab.models.headers import tensor_sizes
from llmlab.runs.disk import patiently
from llmlab.runs.folder import RUN_CONFIG, RunFolder
from llmlab.runs.manifest import seal, sync_folder
from llmlab.training.callbacks.non_finite import Trouble, suspects
from llmlab.training.engine import snapshot as resume
from llmlab.training.engine.contents import (
    check_optimizer,
    check_scheduler,
    check_weights_are_there,
    restoring,
)
from llmlab.training.held_out import EACH, HeldOutBatches, HeldOutFigures, learned_tokens
from llmlab.training.optimizers import HESSIAN_EVERY, SophiaG, gauss_newton_diagonal
from llmlab.training.order import SeededOrder

LEFT_OUT = (
    "training_args.bin",
    "README.md",
)  # a pickle that nothing reads, and a card that says nothing of this run

HYPERPARAMETERS = (
    "weight_decay",
    "betas",
    "eps",
    "momentum",
    "nesterov",
)  # of an optimizer, as the config has them


class LabTrainerMixin:
    """Checkpoints that are whole or not there, and that hold all of a run; updates that would break the
    weights are skipped; Sophia's curvature; the mean over validation sources.

    Attributes:
        trouble: who is told of skipped updates; None lets every update pass.
        position: writes the place in a stream; None where rows are stored.
        keep: checkpoints that are kept.
        changed: options that are others than those of the checkpoint that is resumed.
        run_config: options of the run and what it reads, kept in every checkpoint.
        moment: the run after its last update, to which it goes back when it is stopped in the middle of the
            next.
        say: shows a line to the person.
        stopped: whether an end was asked for.
    """

    trouble: Trouble | None = None
    position: Any = None
    keep: int = 3
    changed: frozenset[str] = frozenset()
    run_config: dict[str, Any] = {}
    moment: resume.Moment | None = None
    say: Callable[[str], None] = staticmethod(lambda text: None)
    stopped: Callable[[], bool] = staticmethod(lambda: False)
    _suspects: tuple[str, ...] = ()
    _aside: Path | None = None
    _order: Any = None
    _resumed: Path | None = None
    _held_out: HeldOutFigures

    # What a method keeps beside weights and optimizer

    def extras(self) -> Any:
        """Returns what else belongs to a moment; for `put_extras`."""

    def put_extras(self, extras: Any) -> None:
        """Puts it back."""

    def save_extras(self, folder: Path) -> None:
        """Writes it into a checkpoint; the first process alone does."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: the library's says nothing of this run."""

    # Order of rows

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the order of stored rows; None for a stream."""
        self._order = self._make_order(super()._get_train_sampler(*args, **kwargs))
        return self._order

    def _make_order(self, library: Any) -> Any:
        """Returns an order that follows from seed and epoch alone,
        for the sampler that the library would take.
        """
        return SeededOrder(len(library), self.args.seed) if isinstance(library, RandomSampler) else library

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Does an epoch; in several processes accelerate tells its number to no sampler of a resumed run."""
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)

    # One update

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Does the step, then the estimate where one is due."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.trouble and not torch.isfinite(loss):
            self._suspects += suspects(self, model, inputs)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if (
            isinstance(optimizer, SophiaG)
            and self.accelerator.sync_gradients
            and (
                self.state.global_step % HESSIAN_EVERY == 0
                or not optimizer.state  # begun anew in the middle of a run
            )
        ):
            estimate = gauss_newton_diagonal(model, optimizer, self._prepare_inputs(inputs))
            optimizer.hessian = [self.accelerator.reduce(part, "mean") for part in estimate]
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Returns the norm; where it, or a loss of this update, is not finite,
        the update is made to change nothing.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        bad = not torch.isfinite(torch.as_tensor(norm)) or bool(self._suspects)
        if self.accelerator.num_processes > 1:  # all skip, or none
            bad = bool(
                self.accelerator.reduce(torch.tensor(float(bad), device=self.args.device), "sum").item()
            )
        if self.trouble:
            if bad and not self.args.fp16:  # in fp16 the scaler skips, and lowers its scale
                for group in self.optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            self.trouble.note(self.state.global_step + 1, bad, norm, self._suspects, fp16=self.args.fp16)
        self._suspects = ()
        return norm

    # Moments

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.moment = resume.take(self)

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False
    ) -> dict[str, float]:
        if self.state.global_step:
            self.moment = resume.take(self, eval_due=True)
        figures = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self.state.global_step:
            self.moment = resume.take(self)
        return figures

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the weights.

        Raises:
            LabError: when they are others than those that are trained.
        """
        with restoring(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
                check_weights_are_there(model or self.model, tensor_sizes(Path(resume_from_checkpoint)))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loads the scale of fp16."""
        if checkpoint is not None:
            with restoring(checkpoint):
                super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Loads all that transformers forgets, too, and does the validation that a stop had broken off."""
        if checkpoint is None:
            return
        with restoring(checkpoint):
            super()._load_rng_state(checkpoint)
            due = resume.read(self, Path(checkpoint))
        self._resumed = Path(self.args.output_dir) / Path(checkpoint).name
        self.moment = resume.take(self, eval_due=due)
        if due:
            if (
                self.is_world_process_zero()
            ):  # it may have been done since, and stopped before the next update
                RunFolder(Path(self.args.output_dir)).forget_validation(self.state.global_step)
            self._evaluate(None, None)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads both; what was changed on purpose stays as the config has it now."""
        if checkpoint is None:
            return
        fresh_base = list(self.lr_scheduler.base_lrs)
        fresh = [
            {name: group[name] for name in HYPERPARAMETERS if name in group}
            for group in self.optimizer.param_groups
        ]
        with restoring(checkpoint):
            if (file := Path(checkpoint) / "scheduler.pt").is_file():
                state = torch.load(file, map_location="cpu", weights_only=True)
                check_scheduler(state, self.lr_scheduler, groups="optimizer" not in self.changed)
            if "optimizer" in self.changed:
                self.lr_scheduler.load_state_dict(state)
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
                check_optimizer(self.optimizer)
        if "optimizer" not in self.changed:
            for group, values in zip(
                self.optimizer.param_groups, fresh, strict=True
            ):  # the checkpoint's came with its state
                group.update(values)
        if self.changed & {
            "optimizer",
            "learning_rate",
            "value_learning_rate",
            "scheduler",
            "warmup_steps",
            "max_steps",
        }:
            self.lr_scheduler.base_lrs = fresh_base
            step, factors = self.lr_scheduler.last_epoch, self.lr_scheduler.lr_lambdas
            for group, base, factor in zip(self.optimizer.param_groups, fresh_base, factors, strict=True):
                group["initial_lr"], group["lr"] = base, base * factor(step)
            self.lr_scheduler._last_lr = [
                group["lr"] for group in self.optimizer.param_groups
            ]  # what is logged

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._aside) if self._aside else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint aside, seals it, renames it, and only then removes old ones;
        waits for room on the disk.
        """
        run = Path(self.args.output_dir)
        target = run / f"checkpoint-{self.state.global_step}"
        if target == self._resumed:  # stopped again before the first update after a resume
            return
        self._aside = run / ".saving"
        try:
            patiently(
                lambda: self._write_checkpoint(model, trial, target),
                run,
                self._bytes_needed(),
                self.say,
                self.stopped,
            )
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(self._aside, ignore_errors=True)
            self._aside = None

    def _write_checkpoint(self, model: Any, trial: Any, target: Path) -> None:
        main = self.is_world_process_zero()
        if main:
            shutil.rmtree(self._aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        moment = self.moment if self.moment and self.moment.eval_due else resume.take(self)
        super()._save_checkpoint(model, trial)
        aside = self._aside / target.name
        resume.write(self, moment, aside)
        self.accelerator.wait_for_everyone()
        if self.trouble:
            self.trouble.check_weights(self.model, target)
        if main:
            self.save_extras(aside)
            if self.position:
                self.position.write(aside, self.state.global_step)
            (aside / RUN_CONFIG).write_text(json.dumps(self.run_config))
            for name in LEFT_OUT:
                (aside / name).unlink(missing_ok=True)
            seal(aside, step=self.state.global_step)
            shutil.rmtree(target, ignore_errors=True)  # one that does not verify
            os.replace(aside, target)
            sync_folder(target.parent)
            with suppress(LabError):  # on a full disk the record stays as it was
                RunFolder(target.parent).update(sealed=self.state.global_step)
            self._prune(target)
        self.accelerator.wait_for_everyone()

    def _prune(self, newest: Path) -> None:
        numbered = [path for path in newest.parent.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
        older = sorted(numbered, key=lambda path: -int(path.name.split("-")[1]))
        for path in older[self.keep :]:
            if path != newest:  # gone at once for whoever looks, then deleted
                leaving = path.with_name(f".old-{path.name}")
                path.rename(leaving)
                shutil.rmtree(leaving, ignore_errors=True)

    def _bytes_needed(self) -> int:
        """Returns about how much a checkpoint takes: as much as the last one, or weights and two moments."""
        last = max(
            Path(self.args.output_dir).glob("checkpoint-*"),
            key=lambda path: path.stat().st_mtime,
            default=None,
        )
        if last:
            return sum(file.stat().st_size for file in last.rglob("*") if file.is_file())
        return sum(3 * p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    # Validation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoaderShard:
        """Returns the batches of this process: every held-out row once, in order, over all processes."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        args = self.args
        batches = HeldOutBatches(
            len(rows), args.per_device_eval_batch_size, args.process_index, args.world_size
        )
        return DataLoaderShard(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            _drop_last=True,  # no row comes twice: there is none to take off again
        )

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Reads a batch of a validation, and notes its figures."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach().mean()
        self._held_out.add(*self.held_out_batch(inputs, loss))
        return loss, None, None

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Puts figures over all tokens or rows in the place of means over batches."""
        self._held_out = HeldOutFigures(dataloader.batch_sampler.shares)
        with self._router_loss_left_out():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        found = self.held_out_figures(self._held_out.totals(self._over_processes))
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.pop(f"{prefix}_loss", None)
        output.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        return output

    def held_out_batch(self, inputs: Any, loss: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the figures of the batch that was just read, and what they are means over, by name."""
        return {"loss": loss.item(), **self._library_figures()}, self.held_out_weights(inputs)

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns what the figures of a batch are means over: here the tokens that are learned."""
        return {EACH: learned_tokens(inputs["labels"])}

    def held_out_figures(self, totals: dict[str, float]) -> dict[str, float]:
        """Returns the held-out figures, made of the means over all rows."""
        return totals

    @contextmanager
    def _router_loss_left_out(self) -> Iterator[None]:
        """Leaves out the loss that balances a mixture's experts: it is one of a whole batch,
        not a mean over its tokens.
        """
        about = self.model.config.get_text_config()
        by_model, by_trl = (
            getattr(about, "output_router_logits", None),
            getattr(self, "aux_loss_enabled", None),
        )
        if by_model:
            about.output_router_logits = False
        if by_trl:
            self.aux_loss_enabled = False
        try:
            yield
        finally:
            if by_model:
                about.output_router_logits = by_model
            if by_trl:
                self.aux_loss_enabled = by_trl

    def _library_figures(self) -> dict[str, float]:
        """Returns what TRL noted of the batch that was just read, and takes it from TRL,
        which would average over batches.
        """
        noted = getattr(self, "_metrics", {}).get("eval", {})
        return {name: noted.pop(name)[-1] for name in list(noted) if name != "num_tokens"}

    def _over_processes(self, sums: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return sums
        return self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the held-out figures; of several sources each by itself, their mean,
        and the spread of the losses.
        """
        figures = super().evaluate(eval_dataset, *args, **kwargs)
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(chosen, dict):
            return figures
        together = over_sources(figures, list(chosen))
        self.log(together)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, together)
        return {**figures, **together}


def over_sources(figures: dict[str, float], names: list[str]) -> dict[str, float]:
    """Returns the mean over the sources of every `eval_<source>_...` figure,
    and the standard deviation of the losses.
    """
    kinds = [key.removeprefix(f"eval_{names[0]}_") for key in figures if key.startswith(f"eval_{names[0]}_")]
    means = {}
    for kind in kinds:
        values = [figures[f"eval_{name}_{kind}"] for name in names]
        if not kind.endswith(("runtime", "per_second", "num_tokens")):
            means[f"eval_{kind}"] = statistics.fmean(values)
        if kind == "loss":
            means["eval_loss_spread"] = statistics.pstdev(values)
    return means

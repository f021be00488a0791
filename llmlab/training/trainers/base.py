"""What every trainer of the lab does beside its method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import RandomSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.data.stream import StreamFault
from llmlab.files import write_text_atomically
from llmlab.models.adapters import is_adapted
from llmlab.models.headers import tensor_sizes
from llmlab.runs.figures import SUITE
from llmlab.runs.folder import RunFolder
from llmlab.training import compat
from llmlab.training.callbacks.best_model import BestModel
from llmlab.training.callbacks.non_finite import NonFiniteGuard, suspects
from llmlab.training.callbacks.patience import PATIENCE, Patience, PatienceExhausted
from llmlab.training.callbacks.stream_position import StreamProgress
from llmlab.training.engine import optimizer_state
from llmlab.training.engine.checkpointing import CheckpointWriter
from llmlab.training.engine.contents import (
    check_optimizer,
    check_scheduler,
    check_weights_are_there,
    restoring,
)
from llmlab.training.engine.sharing import Sharing
from llmlab.training.engine.state import (
    Stateful,
    TrainerSnapshot,
    load_parts,
    load_state,
    restore_snapshot,
    save_state,
    take_snapshot,
)
from llmlab.training.engine.tensor_parallel import as_plain, optimizer_saved_here
from llmlab.training.engine.weights import load_weights, whole_state
from llmlab.training.optimizers import HESSIAN_EVERY, SophiaG, gauss_newton_diagonal
from llmlab.training.order import SeededOrder
from llmlab.training.trainers.adapter_weights import trained_weights_kept
from llmlab.training.trainers.saving import save_model
from llmlab.training.trainers.watched import Watch, WatchedMixin
from llmlab.training.trainers.zero import ZeroMixin

compat.check(compat.TRAINER)

# of an optimizer's parameter group, as the config has them
HYPERPARAMETERS = ("weight_decay", "betas", "eps", "momentum", "nesterov")
DEEPSPEED_SETTINGS = "deepspeed.json"
# options that a schedule follows from
SCHEDULE = {
    *("optimizer", "learning_rate", "value_learning_rate", "scheduler"),
    *("warmup_steps", "warmup_ratio", "max_steps", "epochs"),
}


@dataclass(frozen=True)
class RunServices:
    """What a run gives its trainer beside the libraries' arguments.

    Attributes:
        run: the run's folder.
        optimizer: makes the optimizer of a model.
        sharing: how the devices of the job share the work.
        checkpoints: writes checkpoints.
        guard: is told of updates that are not finite.
        stream: the place in a stream; one that keeps nothing where rows are stored.
        best_by: the figure that `best/` is chosen by, "" for none.
        changed: options that are others than those of the checkpoint that is resumed.
        patience: ends the run when its figure gets no better; None where it goes on to its last step.
        watch: what evaluates the model on a suite; None for nothing.
    """

    run: RunFolder
    optimizer: Callable[[nn.Module], Optimizer]
    sharing: Sharing
    checkpoints: CheckpointWriter
    guard: NonFiniteGuard
    stream: StreamProgress
    best_by: str = ""
    changed: frozenset[str] = frozenset()
    patience: Patience | None = None
    watch: Watch | None = None

    @property
    def best_begins_anew(self) -> bool:
        """Whether the figure that the best weights are chosen by is not the one so far, or of other rows."""
        rows = {"evaluation_suite", "evaluation_rows"} if self.best_by.startswith(SUITE) else set[str]()
        return bool(self.changed & {"metric_for_best", *rows})


class _Hooks(TrainerCallback):
    """Tells a trainer of the events that transformers tells callbacks only."""

    def __init__(self, trainer: LabTrainerMixin):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Writes the settings that DeepSpeed works by, where it does."""
        settings, services = self.trainer.settings_in_effect(), self.trainer.services
        if settings and services and state.is_world_process_zero:
            file = services.run.path / DEEPSPEED_SETTINGS
            text = json.dumps(settings, indent=2) + "\n"
            services.checkpoints.disk.retry(lambda: write_text_atomically(file, text), services.run.path)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: object,
    ) -> None:
        """Sets the order's epoch; in several processes accelerate tells it to no sampler of a resumed run."""
        order = self.trainer.order
        if hasattr(order, "set_epoch"):
            updates = max(1, -(-len(train_dataloader) // args.gradient_accumulation_steps))
            order.set_epoch(state.global_step // updates)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes a snapshot."""
        self.trainer.take_snapshot()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes a snapshot: saving stores what is counted."""
        self.trainer.take_snapshot()


class LabTrainerMixin(ZeroMixin, WatchedMixin):
    """Checkpoints that are complete and hold all of a run; updates that would break the weights are skipped;
    Sophia's curvature; held-out figures over all rows.

    Args:
        services: of the run; without them nothing is watched or written.
        callbacks: further ones.

    Attributes:
        snapshot: the run after its last update, to which it returns when it is stopped in the middle of the
            next; None before the first one.
        order: of stored rows; None for a stream.
    """

    def __init__(
        self,
        *args: Any,
        services: RunServices | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self.services = services
        self.snapshot: TrainerSnapshot | None = None
        self.order: Any = None
        self._suspects: tuple[str, ...] = ()
        self._aside: Path | None = None
        self._failed_write: Exception | None = None
        self._resumed_step = -1
        watching = [*(callbacks or []), _Hooks(self)]
        if services and services.patience:
            watching.insert(0, services.patience)
        if services and services.best_by:
            anew = services.best_begins_anew
            watching.insert(0, BestModel(services.run, services.best_by, self.save_as, anew=anew))
        if services and services.watch:
            watching.append(services.watch.steps)
        kwargs["callbacks"] = watching
        model = kwargs.get("model", args[0] if args else None)
        with trained_weights_kept(model), optimizer_saved_here(model, kwargs.get("args")):
            super().__init__(*args, **kwargs)

    def stateful_parts(self) -> dict[str, Stateful]:
        """Returns what else must survive a stop, by the name of its file in a checkpoint."""
        patience = self.services.patience if self.services else None
        return {PATIENCE: patience} if patience else {}

    def take_snapshot(self, *, eval_due: bool = False) -> None:
        """Notes the state that the run is in."""
        self.snapshot = take_snapshot(self, eval_due=eval_due)

    def save_snapshot(self) -> None:
        """Returns to the end of the last update and saves a checkpoint there; before the first update there
        is nothing to save.
        """
        if self.snapshot is not None and self.state.global_step:
            restore_snapshot(self, self.snapshot)
            compat.save_checkpoint(self)

    def save_as(self, name: str, **facts: object) -> None:
        """Saves the model as a Hugging Face model folder of the run; every process has to call it."""
        assert self.services is not None
        save_model(self, self.services.run.path / name, self.services.checkpoints.disk, **facts)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model and tokenizer; of a model that is divided, what all processes have together."""
        if not (self.has_parts or self.has_zero_engine):
            super().save_model(output_dir, _internal_call)
            return
        main, adapted = self.is_world_process_zero(), is_adapted(self.model)
        gather = self.zero_state().whole if self.has_zero_engine else optimizer_state.whole
        state = whole_state(self.model, adapter_only=adapted, main=main, of=gather)
        if main:
            with self._put_off(), as_plain(self.model):
                self._save(output_dir, state_dict=state)
        if self._aside is None:
            self._raise_put_off()

    @property
    def has_parts(self) -> bool:
        """Whether each process has a part of every weight, as a tensor that PyTorch has divided."""
        return bool(self.is_fsdp_enabled or self.is_distributed_loading_by_transformers)

    @contextmanager
    def _put_off(self) -> Iterator[None]:
        """Keeps an error of this process until the others have what they wait for."""
        try:
            yield
        except Exception as error:  # the libraries that write raise kinds of their own
            self._failed_write = self._failed_write or error

    def _raise_put_off(self) -> None:
        failed, self._failed_write = self._failed_write, None
        if failed is not None:
            raise failed

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: transformers' says nothing of this run."""

    # Optimizer

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Returns the optimizer of the run, over the weights that the trainer has when it begins."""
        if self.services is None:
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = self.services.optimizer(self.model)
        return self.optimizer

    # Order of rows

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the order of stored rows; None for a stream."""
        self.order = self._make_order(super()._get_train_sampler(*args, **kwargs))
        return self.order

    def _make_order(self, library: Any) -> Any:
        """Returns an order that follows from seed and epoch alone,
        for the sampler that transformers would take.
        """
        return SeededOrder(len(library), self.args.seed) if isinstance(library, RandomSampler) else library

    # One update

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the micro-batches of an update and what their loss is a mean over; of a stream, its place
        is followed.
        """
        streams = self.services is not None and self.services.stream.stream is not None
        begins = streams and self.state.global_step == self._resumed_step
        try:
            # a loader that begins draws a number, which the run had drawn before it was stopped
            with torch.random.fork_rng(devices=[]) if begins else nullcontext():
                samples, items = super().get_batch_samples(*args, **kwargs)
        except StreamFault as fault:
            raise fault.error() from None
        if self.services:
            self.services.stream.follow(samples)
        return samples, items

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Does the step, then the estimate where one is due."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.services and not torch.isfinite(loss):
            divided = self.services.sharing.sharded
            self._suspects += suspects(self, model, inputs, divided=divided)
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
        if self.services:
            if bad and not self.args.fp16:  # in fp16 the scaler skips, and lowers its scale
                for group in self.optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            self.services.guard.note(
                self.state.global_step + 1, bad, norm, self._suspects, fp16=self.args.fp16
            )
        self._suspects = ()
        return norm

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Counts the tokens of a batch: once, of processes that have the same rows."""
        before = self.state.num_input_tokens_seen
        super()._track_num_input_tokens(inputs)
        read = self.state.num_input_tokens_seen - before
        self.state.num_input_tokens_seen = before + read // self.get_tp_size()

    # Snapshots: after an update, and again after what follows it (log, evaluation, checkpoint)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, and takes a snapshot: what was summed up since the last log is spent."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.snapshot is not None:
            self.take_snapshot()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the weights.

        Raises:
            LabError: when they are others than those that are trained.
        """
        with restoring(resume_from_checkpoint):
            if self.has_parts:
                load_weights(model or self.model, Path(resume_from_checkpoint))
            elif self.has_zero_engine:
                self.zero_state().load_weights(Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            check_weights_are_there(model or self.model, tensor_sizes(Path(resume_from_checkpoint)))
            load_parts(self, Path(resume_from_checkpoint))

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
            due = load_state(self, Path(checkpoint))
        self._resumed_step = self.state.global_step
        self.take_snapshot(eval_due=due)
        if due:
            if self.services and self.is_world_process_zero():
                # it may have been done since, and stopped before the next update
                self.services.run.drop_validation(self.state.global_step)
            self.evaluate()
        if self.services and self.services.patience and self.services.patience.exhausted:
            raise PatienceExhausted

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads both; what was changed on purpose stays as the config has it now."""
        if checkpoint is None:
            return
        changed = self.services.changed if self.services else frozenset()
        fresh_base = list(self.lr_scheduler.base_lrs)
        fresh = [
            {name: group[name] for name in HYPERPARAMETERS if name in group}
            for group in self.optimizer.param_groups
        ]
        with restoring(checkpoint):
            if (file := Path(checkpoint) / "scheduler.pt").is_file():
                state = torch.load(file, map_location="cpu", weights_only=True)
                check_scheduler(state, self.lr_scheduler, groups="optimizer" not in changed)
            if "optimizer" in changed:
                self.lr_scheduler.load_state_dict(state)
            else:
                self._load_optimizer(checkpoint)
                self.lr_scheduler.load_state_dict(state)
                check_optimizer(self.optimizer)
        if "optimizer" not in changed:  # the checkpoint's hyperparameters came with its state
            for group, values in zip(self.optimizer.param_groups, fresh, strict=True):
                group.update(values)
        if changed & SCHEDULE:
            self.lr_scheduler.base_lrs = fresh_base
            for group, base in zip(self.optimizer.param_groups, fresh_base, strict=True):
                group["initial_lr"] = base
            self.lr_scheduler.last_epoch -= 1
            self.lr_scheduler.step()  # to the same place again, with the new rates

    def _load_optimizer(self, checkpoint: str) -> None:
        folder, optimizer = Path(checkpoint), getattr(self.optimizer, "optimizer", self.optimizer)
        if self.has_zero_engine:
            self.zero_state().load(folder)
        elif (folder / optimizer_state.FOLDER).is_dir():
            optimizer_state.load_parts(self.model, optimizer, folder)
        elif self.has_parts:
            optimizer_state.load_whole(self.model, optimizer, folder)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Saves both; of an optimizer whose state is divided every process writes its part."""
        main, folder = self.is_world_process_zero(), Path(output_dir)
        if self.has_zero_engine:
            self.zero_state().save(folder)
        elif self.has_parts:
            optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
            optimizer_state.save_parts(self.model, optimizer, folder, main=main)
        else:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if main:
            torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._aside) if self._aside else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint, complete or not at all."""
        step = self.state.global_step
        if self.services is None or step == self._resumed_step:  # stopped again before the first update
            return
        writer = self.services.checkpoints
        snapshot = self.snapshot if self.snapshot and self.snapshot.eval_due else take_snapshot(self)
        self._aside = writer.aside
        trained = (p for p in self.model.parameters() if p.requires_grad)
        try:
            writer.write(
                step,
                partial(self._write_checkpoint, model, trial, snapshot),
                main=self.is_world_process_zero(),
                barrier=self.accelerator.wait_for_everyone,
                expected_bytes=sum(3 * p.numel() * p.element_size() for p in trained),
            )
        finally:
            self._aside = None

    def _write_checkpoint(self, model: Any, trial: Any, snapshot: TrainerSnapshot, folder: Path) -> None:
        assert self.services is not None
        self.services.guard.check_weights(self.own_weights(), folder.name)
        super()._save_checkpoint(model, trial)
        save_state(self, snapshot, folder)
        self._raise_put_off()
        if self.is_world_process_zero():
            self.services.stream.write(folder, self.state.global_step)

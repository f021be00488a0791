"""The private names of transformers' trainer that reading a checkpoint goes by."""

import inspect

import pytest
from transformers import Trainer
from transformers.trainer_callback import TrainerState


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_rng_state", ["self", "checkpoint"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("_load_scaler", ["self", "checkpoint"]),
    ],
)
def test_what_reads_a_checkpoint(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
    calls = inspect.getsource(Trainer.train) + inspect.getsource(Trainer._inner_training_loop)
    calls += inspect.getsource(Trainer._prepare_for_training) + inspect.getsource(Trainer._run_epoch)
    assert f"self.{name}(" in calls


def test_a_module_that_is_no_pretrained_model_loads_weights_with_this_name_alone():
    """`PolicyWithValueHead` has `_keys_to_ignore_on_save` for it."""
    source = inspect.getsource(Trainer._issue_warnings_after_load)
    assert "self.model._keys_to_ignore_on_save is not None" in source and source.count("self.model.") == 4


def test_the_state_that_is_looked_at_is_the_state_that_is_written(tmp_path):
    TrainerState(global_step=3).save_to_json(str(tmp_path / "s.json"))
    assert {
        "global_step",
        "train_batch_size",
        "log_history",
        "best_model_checkpoint",
        "stateful_callbacks",
    } <= set(vars(TrainerState.load_from_json(str(tmp_path / "s.json"))))

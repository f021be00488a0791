"""What this package takes from inside TRL's GRPO trainer, whose names may change with any version."""

import inspect

import trl
from accelerate.data_loader import DataLoaderShard


def test_the_steps_of_a_rollout_are_where_they_were():
    wanted = {
        "_generate_and_score_completions": ["inputs"],
        "_prepare_inputs": ["generation_batch"],
        "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["model", "inputs"],
    }
    for name, parameters in wanted.items():
        assert list(inspect.signature(getattr(trl.GRPOTrainer, name)).parameters)[1:] == parameters, name


def test_answers_are_generated_by_the_config_of_the_trainer_and_kept_for_its_updates():
    single_turn = inspect.getsource(trl.GRPOTrainer._generate_single_turn)
    assert "generation_config=self.generation_config" in single_turn
    beginning = inspect.getsource(trl.GRPOTrainer.__init__)
    assert "GenerationConfig(**generation_kwargs, disable_compile=True)" in beginning
    for name in (
        "self.generation_kwargs",
        "self._buffered_inputs",
        "self._step",
        "self.max_completion_length",
    ):
        assert f"{name} = " in beginning, name
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in inspect.getsource(
        trl.GRPOTrainer._prepare_inputs
    )


def test_what_a_validation_reads_and_leaves_out_has_these_names():
    """Figures of a batch stand in `_metrics`, the balancing loss hangs on `aux_loss_enabled`,
    a loader takes `_drop_last`.
    """
    for trainer in (trl.SFTTrainer, trl.DPOTrainer, trl.GRPOTrainer):
        source = inspect.getsource(trainer)
        assert "self.aux_loss_enabled = " in source and "if self.aux_loss_enabled:" in source, trainer
    for trainer in (trl.SFTTrainer, trl.DPOTrainer, trl.GRPOTrainer, trl.RewardTrainer):
        assert "self._metrics[mode][" in inspect.getsource(trainer), trainer
    assert "_drop_last" in inspect.signature(DataLoaderShard.__init__).parameters
    assert "if not self._drop_last" in inspect.getsource(DataLoaderShard.begin)


def test_a_dpo_trainer_loads_and_hashes_a_model_by_names_that_can_be_replaced():
    beginning = inspect.getsource(trl.DPOTrainer.__init__)
    assert "create_model_from_path(" in beginning and "hash_module(" in beginning

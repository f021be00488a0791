"""What this package takes from TRL's engine for vLLM and its client."""

import inspect

import trl
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration


def test_the_engine_takes_these_options():
    taken = inspect.signature(VLLMGeneration.__init__).parameters
    for name in (
        *("model", "accelerator", "processing_class", "mode", "server_base_url", "group_port"),
        *("tensor_parallel_size", "gpu_memory_utilization", "max_model_length"),
    ):
        assert name in taken, name
    source = inspect.getsource(VLLMGeneration)
    assert "model=model.name_or_path" in source, "colocate reads the model by its name"
    assert 'logprobs_mode="processed_logprobs"' in source
    for line in ("self._iter_named_params()", "self.vllm_client.update_named_params("):
        assert line in inspect.getsource(VLLMGeneration.sync_weights), line
    assert "self.tp_group" in source and "self.llm = LLM(" in source


def test_merged_weights_hold_while_they_are_read():
    source = inspect.getsource(VLLMGeneration._iter_named_params)
    merged, unmerged = source.index("model.merge_adapter()"), source.index("model.unmerge_adapter()")
    assert merged < source.index("yield name, param.data") < unmerged


def test_the_client_passes_a_seed_on():
    taken = inspect.signature(VLLMClient.generate).parameters
    for name in (
        "prompts",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "logprobs",
        "generation_kwargs",
    ):
        assert name in taken, name
    assert "sampling_params.update(generation_kwargs or {})" in inspect.getsource(VLLMClient.generate)
    assert 'device.type != "cuda"' in inspect.getsource(VLLMClient.init_communicator)


def test_the_trainer_asks_for_answers_in_one_place():
    turn = trl.GRPOTrainer._generate_single_turn
    assert list(inspect.signature(turn).parameters)[1] == "prompt_ids"
    assert "return completion_ids, logprobs" in inspect.getsource(turn)
    beginning = inspect.getsource(trl.GRPOTrainer.__init__)
    assert "self.use_vllm = args.use_vllm" in beginning
    scoring = inspect.getsource(trl.GRPOTrainer._generate_and_score_completions)
    assert "old_per_token_logps - sampling_per_token_logps" in scoring
    assert "args.use_vllm" not in scoring, "the trainer's own attribute says whether vLLM writes"

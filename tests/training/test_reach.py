"""Weights that no loss reaches are found, and only then do processes look for them in every step."""

from functools import partial

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, MixtralConfig, T5Config, T5ForConditionalGeneration

from llmlab.config import PretrainConfig
from llmlab.data.pipeline import Prepared
from llmlab.training.engine.arguments import trainer_arguments
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import SILENT
from llmlab.training.reach import unreached
from tests.conftest import small_model

SHAPE = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


def with_an_idle_layer():
    model = small_model()
    model.idle = torch.nn.Linear(2, 2)
    return model


def experts():
    return AutoModelForCausalLM.from_config(
        MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=16)
    )


def encoder_decoder():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=97, d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=4, decoder_start_token_id=0
        )
    )


@pytest.fixture
def one_process_of_a_job(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


MODELS = [
    (small_model, []),
    (experts, []),
    (encoder_decoder, []),
    (with_an_idle_layer, ["idle.weight", "idle.bias"]),
]


@pytest.mark.parametrize("make, wanted", MODELS)
def test_what_no_loss_reaches_is_what_processes_would_wait_for(one_process_of_a_job, make, wanted):
    model = make().train()
    assert unreached(model) == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    shared = DistributedDataParallel(model)

    def steps():
        for _ in range(2):
            shared(**model.dummy_inputs, labels=model.dummy_inputs["input_ids"]).loss.backward()

    if wanted:
        with pytest.raises(RuntimeError, match="finished reduction"):
            steps()
    else:
        steps()


@pytest.mark.parametrize(
    "processes, make, wanted",
    [("2", small_model, False), ("2", with_an_idle_layer, True), ("1", with_an_idle_layer, False)],
)
def test_processes_look_for_them_only_where_there_are_some(
    monkeypatch, shape, tmp_path, processes, make, wanted
):
    monkeypatch.setenv("WORLD_SIZE", processes)
    job = Job(make(), None, Prepared(train=None, eval={}), partial(dict), partial(dict), None)
    arguments = trainer_arguments(
        RunContext(PretrainConfig(model=shape), "cpu", "fp32", SILENT), job, tmp_path
    )
    assert arguments["ddp_find_unused_parameters"] is wanted

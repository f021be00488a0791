"""Shapes that ship with the package: transformers builds each model, without memory, and counts its
weights.
"""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmlab.config import SFTConfig
from llmlab.errors import LabError
from llmlab.models.headers import checkpoint_shape
from llmlab.models.known_models import known_models, known_shape, nearest_known
from llmlab.models.shapes import ARCHITECTURES, shape_of_config
from llmlab.planning.memory import predicted

MODELS = {model.id: model for model in known_models().values()}
CODE_OF_THEIR_OWN = {"internlm2": "llama", "minicpm": "llama"}  # -> what has the same matrices
LAYERS = {"gpt2": "n_layer", "bloom": "n_layer"}


def built(config, layers):
    """Returns the parameters of the model that transformers builds, all of them and those of its matrices."""
    values = {**config, LAYERS.get(config["model_type"], "num_hidden_layers"): layers}
    kind = CODE_OF_THEIR_OWN.get(values.pop("model_type"), config["model_type"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    weights = dict(model.named_parameters())
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = sum(
        p.numel()
        for name, p in weights.items()
        if p.ndim == 2 and id(p) not in ends and not re.search("wpe|embed_positions", name)
    )
    return torch.tensor([sum(p.numel() for p in weights.values()), matrices])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_count_is_that_of_transformers(kind):
    """Layers of a model are alike, so two models of one and of two layers tell what all of them have."""
    models = [model for model in MODELS.values() if model.config["model_type"] == kind]
    assert models
    for model in models:
        shape = known_shape(model.id)
        one, two = (built(model.config, layers) for layers in (1, 2))
        assert (shape.parameters, shape.in_matrices) == tuple(
            (one + (shape.layers - 1) * (two - one)).tolist()
        )


@pytest.mark.slow
def test_a_whole_model_is_counted_as_well():
    for name in ("openai-community/gpt2", "google/gemma-3-270m"):
        shape = known_shape(name)
        assert (shape.parameters, shape.in_matrices) == tuple(
            built(MODELS[name].config, shape.layers).tolist()
        )


def test_the_count_is_the_published_one():
    assert len(MODELS) > 50
    for name, model in MODELS.items():
        published = float(model.parameters[:-1]) * {"M": 1e6, "B": 1e9}[model.parameters[-1]]
        assert known_shape(name).parameters == pytest.approx(published, rel=0.005), name
        assert model.source == f"https://huggingface.co/{name}/blob/main/config.json"
    assert known_shape("meta-llama/Llama-3.1-8B").parameters == 8_030_261_248  # the hub's own figure
    assert known_shape("qwen/qwen2.5-0.5b").parameters == 494_032_768


def test_a_plan_needs_no_download():
    known = checkpoint_shape("Qwen/Qwen2.5-7B-Instruct")
    assert known == known_shape("Qwen/Qwen2.5-7B") and known.kv_heads == 4 and known.longest == 131072
    qlora = SFTConfig(policy_checkpoint="Qwen/Qwen2.5-7B", adapter="qlora")
    full = SFTConfig(policy_checkpoint="Qwen/Qwen2.5-7B")
    assert 4e9 < predicted(qlora).weights < 8e9 < 16 * 7.6e9 < predicted(full).total
    assert nearest_known("qwen2.5-7b-instrct")[0] == "Qwen/Qwen2.5-7B-Instruct"


def test_what_cannot_be_counted_is_refused_with_the_reason():
    with pytest.raises(LabError, match="mixture of experts"):
        shape_of_config({"model_type": "mixtral", "num_local_experts": 8}, "mistralai/Mixtral-8x7B-v0.1")
    with pytest.raises(LabError, match="mamba"):
        shape_of_config({"model_type": "mamba"}, "state-spaces/mamba-130m-hf")
    with pytest.raises(LabError, match="has no `hidden_size`"):
        shape_of_config({"model_type": "llama"}, "somebody/broken")
    with pytest.raises(LabError, match="qk_layernorm"):
        shape_of_config({**MODELS["stabilityai/stablelm-2-1_6b"].config, "qk_layernorm": True}, "x/y")

"""What a layer keeps for its backward pass, as plans count it, beside what torch really saves."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.activations import ACT2FN

from llmlab.config import PretrainConfig
from llmlab.models.headers import checkpoint_shape
from llmlab.models.shapes import shape_of_config
from llmlab.planning.needs import COMPOSED, layer_values

ROWS, LENGTH = 2, 64
SMALL = dict(
    vocab_size=64,
    hidden_size=64,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
MODELS = {
    "llama": dict(num_key_value_heads=2, intermediate_size=176),
    "qwen3": dict(num_key_value_heads=2, head_dim=32, intermediate_size=176),
    "gemma3_text": dict(num_key_value_heads=1, head_dim=32, intermediate_size=128),
    "olmo2": dict(num_key_value_heads=4, intermediate_size=176),
    "gpt2": {},
    "gpt_neox": dict(intermediate_size=256),
    "opt": dict(ffn_dim=256, word_embed_proj_dim=64),
    "bloom": {},
    "phi": dict(intermediate_size=256),
    "starcoder2": dict(num_key_value_heads=2, intermediate_size=256, residual_dropout=0.1),
}


def saved(make, inputs):
    """Bytes of all tensors but weights that the backward pass of a call would read."""
    weights = {weight.untyped_storage().data_ptr() for weight in make.parameters()}
    places = {}

    def keep(tensor):
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            places[place.data_ptr()] = tensor, place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = make(**inputs)
    size = sum(size for _, size in places.values())
    del made
    return size


@pytest.mark.parametrize("kind", MODELS)
def test_a_layer_keeps_what_plans_say(kind):
    sizes = []
    for layers in (1, 2):
        config = AutoConfig.for_model(kind, **SMALL, **MODELS[kind], num_hidden_layers=layers)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
        sizes.append(saved(model.base_model, {"input_ids": torch.ones(ROWS, LENGTH).long()}))
    shape = shape_of_config(config.to_dict(), kind)
    run = PretrainConfig(init_from="any", datasets=["llmlab:moby-dick"], adapter="none")
    counted = layer_values(run, shape, LENGTH, gpu=False)
    really = (sizes[1] - sizes[0]) / 4 / ROWS / LENGTH
    assert counted == pytest.approx(really, rel=0.2), kind


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "gelu_pytorch_tanh", *COMPOSED])
def test_nonlinearities_keep_what_plans_say(name):
    activation = ACT2FN[name]
    last = torch.nn.Linear(8, 3)

    class Forward(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.activation, self.last = activation, last

        def forward(self, values):
            return self.last(self.activation(values * 1.0))

    values = torch.randn(4, 8, requires_grad=True)
    kept = saved(Forward(), {"values": values}) / 4 / values.numel()
    assert round(kept) == 2 + COMPOSED.get(name, 0) - (name == "relu")


def test_layers_are_known_where_the_vocabulary_is_as_small_as_they(tmp_path):
    config = LlamaConfig(
        **SMALL, intermediate_size=64, num_hidden_layers=2, num_key_value_heads=4, tie_word_embeddings=False
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    shape = checkpoint_shape(str(tmp_path))
    assert shape.in_matrices == 2 * (4 * 64 * 64 + 3 * 64 * 64)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())

"""The formula counts what is built."""

import random

import pytest
import torch

from llmlab.config import ModelConfig, preset
from llmlab.models import LabForCausalLM
from llmlab.models.transformer.shapes import to_lab_config
from llmlab.planning import count_parameters, kv_cache_bytes_per_token


def random_shape(rng):
    heads = rng.choice([1, 2, 3, 4, 6, 8, 12])
    attention = rng.choice(["mha", "mqa", "gqa"])
    divisors = [d for d in range(1, heads + 1) if heads % d == 0]
    values = dict(
        vocab_size=rng.randint(5, 5000),
        d_model=heads * rng.choice([2, 4, 8, 16, 64]),
        n_layers=rng.randint(1, 5),
        n_heads=heads,
        attention_type=attention,
        d_ff=rng.randint(1, 300),
        activation=rng.choice(["relu", "gelu", "silu", "leaky_relu", "swiglu"]),
        norm_type=rng.choice(["layernorm", "rmsnorm"]),
        positional_encoding=rng.choice(["sinusoidal", "rope", "alibi", "yarn"]),
        attention_bias=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5,
    )
    return ModelConfig(**values, **({"n_kv_heads": rng.choice(divisors)} if attention == "gqa" else {}))


@pytest.mark.slow
def test_formula_equals_the_built_model_for_200_random_configs():
    rng = random.Random(0)
    for _ in range(200):
        shape = random_shape(rng)
        with torch.device("meta"):
            model = LabForCausalLM(to_lab_config(shape))
        count = count_parameters(shape)
        assert count.total == sum(p.numel() for p in model.parameters())
        embeddings = {id(model.model.embed_tokens.weight), id(model.lm_head.weight)}
        assert count.non_embedding == sum(p.numel() for p in model.parameters() if id(p) not in embeddings)


def test_published_counts():
    published = {"qwen2.5-0.5b": 494_032_768, "llama-3.2-1b": 1_235_814_400, "llama-7b": 6_738_415_616}
    for name, parameters in published.items():
        assert count_parameters(preset(name)).total == parameters


def test_cache_bytes_are_those_of_a_cache():
    shape = preset("tiny")
    model = LabForCausalLM(to_lab_config(shape)).to(torch.bfloat16)
    cache = model(torch.zeros(1, 10, dtype=torch.long), use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == 10 * kv_cache_bytes_per_token(shape)

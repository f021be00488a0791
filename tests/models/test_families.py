"""Every family that a lab model is exported as computes the same: random architectures, random weights."""

import random

import pytest
import torch

from llmlab.errors import LabError
from llmlab.models import LabForSequenceClassification
from llmlab.models.convert import to_hf
from llmlab.models.families import FAMILIES, native_family
from tests.conftest import small_config, small_model

NAMES = [family.model_type for family in FAMILIES]


def random_options(family, rng):
    """Returns options of a random architecture that a family expresses and no family before it does."""
    heads = rng.choice([1, 2, 4, 6])
    kv = rng.choice([d for d in range(1, heads + 1) if heads % d == 0])
    windowed = family.window if family.window is not None else rng.random() < 0.5
    return dict(
        vocab_size=rng.randint(280, 400),
        d_model=heads * rng.choice([4, 8, 16]),
        n_layers=rng.randint(1, 3),
        n_heads=heads,
        attention_type="gqa",
        n_kv_heads=kv,
        d_ff=rng.randint(8, 96),
        norm_type=rng.choice(family.norms),
        activation=rng.choice(family.activations),
        attention_bias=rng.random() < 0.5 if family.attention_bias is None else family.attention_bias,
        norm_eps=rng.choice([1e-6, 1e-5]),
        max_seq_len=128,
        sliding_window=rng.choice([3, 7]) if windowed else rng.choice([None, 128]),
        dropout=rng.choice([0.0, 0.1]),
        tie_word_embeddings=rng.random() < 0.5,
        **rng.choice(
            [
                dict(positional_encoding="rope", rope_theta=rng.choice([1e3, 1e4, 5e5])),
                dict(positional_encoding="yarn", yarn_factor=4.0, yarn_original_max_seq_len=32),
            ]
        ),
    )


def shaken(model):
    """Returns the model with weights that are not those of a start: no scale is 1, no bias 0."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMES)
def test_logits_agree(name, seed):
    family = next(family for family in FAMILIES if family.model_type == name)
    rng = random.Random(f"{name}{seed}")
    torch.manual_seed(seed)
    model = shaken(small_model(**random_options(family, rng)))
    assert native_family(model.config).model_type == name
    native = to_hf(model)
    assert native.config.model_type == name
    ids = torch.randint(0, model.config.vocab_size, (2, 60))
    with torch.no_grad():
        ours, theirs = model(ids).logits, native(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "stablelm"])
def test_reward_models_agree(name):
    family = next(family for family in FAMILIES if family.model_type == name)
    config = small_config(**random_options(family, random.Random(name)), num_labels=1, pad_token_id=0)
    model = shaken(LabForSequenceClassification(config))
    ids = torch.randint(1, config.vocab_size, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(to_hf(model)(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [dict(positional_encoding="alibi"), dict(norm_type="rmsnorm", activation="gelu", attention_bias=True)],
)
def test_what_no_family_computes_is_refused_with_the_reason(options):
    with pytest.raises(LabError, match="exists in none of llama, qwen2"):
        to_hf(small_model(**options))

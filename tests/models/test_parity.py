"""The lab's transformer against transformers' Llama, Qwen2 and Mistral, same weights."""

import random

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llmlab.models.convert import from_hf, to_hf


def random_peer(rng, kind):
    heads = rng.choice([1, 2, 4, 6])
    kv = rng.choice([d for d in range(1, heads + 1) if heads % d == 0])
    common = dict(
        vocab_size=rng.randint(20, 200),
        hidden_size=heads * rng.choice([4, 8, 16]),
        num_hidden_layers=rng.randint(1, 3),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=rng.randint(8, 96),
        rms_norm_eps=rng.choice([1e-6, 1e-5]),
        rope_parameters={"rope_type": "default", "rope_theta": rng.choice([1e3, 1e4, 5e5, 1e6])},
        max_position_embeddings=128,
        tie_word_embeddings=rng.random() < 0.5,
        initializer_range=0.08,
    )
    window = rng.choice([None, 3, 7])
    if kind == "qwen2":
        sliding = dict(use_sliding_window=True, sliding_window=window, max_window_layers=0) if window else {}
        model = Qwen2ForCausalLM(Qwen2Config(**common, **sliding))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at the start, which would hide a missing bias
                torch.nn.init.normal_(parameter, std=0.3)
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**common, sliding_window=window or 5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common))
    return model.eval()


CASES = [(kind, seed) for kind in ("llama", "qwen2", "mistral") for seed in range(24)]


@pytest.mark.parametrize("kind, seed", CASES)
def test_logits_agree(kind, seed):
    rng = random.Random(f"{kind}{seed}")
    torch.manual_seed(seed)
    peer = random_peer(rng, kind)
    ours = from_hf(peer).eval()
    vocab, length = peer.config.vocab_size, rng.randint(2, 20)
    ids = torch.randint(0, vocab, (3, length))
    mask = torch.ones_like(ids)
    side = rng.choice(["none", "left", "right"])
    if side != "none" and length > 3:
        mask[1, :2] = 0 if side == "left" else 1
        mask[1, -2:] = 0 if side == "right" else 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = peer(ids, attention_mask=mask, position_ids=positions).logits
        own = ours(ids, attention_mask=mask, position_ids=positions).logits
    real = mask.bool()
    torch.testing.assert_close(own[real], theirs[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_one_training_step_agrees(kind):
    peer = random_peer(random.Random(kind), kind).train()
    ours = from_hf(peer).train()
    ids = torch.randint(0, peer.config.vocab_size, (4, 16))
    labels = ids.clone()
    labels[0, :5] = -100
    losses = []
    for model in (peer, ours):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)
        loss = model(ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    theirs = peer.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_greedy_generation_agrees(kind):
    peer = random_peer(random.Random(kind + "g"), kind)
    ours = from_hf(peer).eval()
    ids = torch.randint(0, peer.config.vocab_size, (2, 5))
    settings = dict(max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    mask = torch.ones_like(ids)
    assert torch.equal(
        ours.generate(ids, attention_mask=mask, **settings),
        peer.generate(ids, attention_mask=mask, **settings),
    )


@pytest.mark.parametrize(
    "kind, cls", [("llama", LlamaForCausalLM), ("qwen2", Qwen2ForCausalLM), ("mistral", MistralForCausalLM)]
)
def test_round_trip_through_files_is_exact(kind, cls, tmp_path):
    peer = random_peer(random.Random(kind + "r"), kind)
    ours = from_hf(peer)
    to_hf(ours).save_pretrained(tmp_path / "native")
    again = cls.from_pretrained(tmp_path / "native")
    assert type(to_hf(ours)) is cls
    ours.save_pretrained(tmp_path / "lab")
    back = to_hf(type(ours).from_pretrained(tmp_path / "lab"))
    for name, weight in peer.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]) and torch.equal(
            weight, back.state_dict()[name]
        ), name
    assert again.config.sliding_window == peer.config.sliding_window if kind != "llama" else True


def test_yarn_equals_the_library():
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            rope_parameters=rope,
            max_position_embeddings=128,
            initializer_range=0.08,
        )
    ).eval()
    ours = from_hf(peer).eval()
    ids = torch.randint(0, 50, (2, 100))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, peer(ids).logits, atol=1e-5, rtol=1e-5)
    assert ours.config.positional_encoding == "yarn"

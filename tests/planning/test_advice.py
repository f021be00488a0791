"""What is said before a run: shapes from headers alone, memory by part, warnings,
and what would make it fit.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llmlab.config import DPOConfig, PretrainConfig, SFTConfig, preset
from llmlab.config.loader import apply_changes
from llmlab.models.adapters import add_adapter
from llmlab.models.headers import checkpoint_shape
from llmlab.planning import engines
from llmlab.planning.advice import TooLarge, concerns, verdict, ways_to_fit
from llmlab.planning.memory import predicted
from llmlab.planning.needs import adapter_parameters
from llmlab.ui.plan import in_words, live_figures


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    return model, str(tmp_path / "model")


def test_the_shape_is_read_from_headers(checkpoint):
    model, folder = checkpoint
    shape = checkpoint_shape(folder)
    assert shape.parameters == sum(p.numel() for p in model.parameters()) and not shape.tied and shape.gated
    assert (shape.width, shape.layers, shape.kv_heads, shape.feed_forward, shape.longest) == (
        32,
        2,
        2,
        48,
        128,
    )
    in_blocks = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name)
    assert shape.in_matrices == in_blocks
    assert checkpoint_shape("nowhere/at-all") is None


@pytest.mark.parametrize("targets", ["all-linear", "attention", "ffn"])
def test_adapter_parameters_are_the_built_ones(checkpoint, targets):
    model, folder = checkpoint
    config = SFTConfig(policy_checkpoint=folder, adapter="lora", lora_r=4, lora_targets=targets)
    built = add_adapter(model, config)
    assert adapter_parameters(config, checkpoint_shape(folder)) == sum(
        p.numel() for p in built.parameters() if p.requires_grad
    )


def test_what_does_not_fit_can_be_made_to(monkeypatch):
    config = PretrainConfig(model=preset("small"), batch_size=64, gradient_accumulation_steps=1)
    needed = predicted(config).total
    assert not ways_to_fit(config) and verdict(config) == "fits"
    monkeypatch.setattr(engines, "device_memory", lambda config: needed / 2)
    assert verdict(config) == "does not fit"
    assert concerns(config) == [TooLarge(needed, needed / 2)]
    assert in_words(TooLarge(2e9, 1_000_000_000)) == (
        "about 2 GB are needed and 1 GB are free: it will not fit"
    )
    ways = ways_to_fit(config)
    assert ways
    for way in ways:
        made = apply_changes(config, way.changes)
        assert predicted(made).total == way.total < needed / 2
        rows = made.batch_size * made.gradient_accumulation_steps
        assert rows == 64  # the effective batch stays
    assert "does not fit" in "\n".join(live_figures(config))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learning_rate": 0.5}, "is above what sft usually takes"),
        ({"learning_rate": 1e-9}, "is below what sft usually takes"),
        ({"max_length": 512}, "beyond the 128 positions"),
        ({"eval_datasets": ["rows.jsonl"], "datasets": ["rows.jsonl"]}, "appears in both training and eval"),
    ],
)
def test_warnings(checkpoint, changes, said):
    config = SFTConfig(
        **{"policy_checkpoint": checkpoint[1], "max_length": 64, "learning_rate": 1e-4, **changes}
    )
    assert any(said in in_words(concern) for concern in concerns(config))
    assert not concerns(SFTConfig(policy_checkpoint=checkpoint[1], max_length=64, learning_rate=1e-4))


def test_parts_follow_what_is_trained(checkpoint):
    folder = checkpoint[1]
    whole, lora, live = (
        predicted(cls(policy_checkpoint=folder, max_length=64, **more))
        for cls, more in (
            (SFTConfig, {}),
            (SFTConfig, {"adapter": "lora"}),
            (DPOConfig, {"reference": "live", "max_prompt_length": 32}),
        )
    )
    assert lora.gradients < whole.gradients and lora.optimizer < whole.optimizer
    assert live.weights == 2 * whole.weights
    assert sum(whole.parts().values()) == pytest.approx(whole.total)

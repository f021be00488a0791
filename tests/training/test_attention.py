"""`attention_backend`: auto takes what the architecture and the device support;
what is not supported is refused by name.
"""

import json

import pytest
import transformers

from llmlab.config import RewardConfig, SFTConfig
from llmlab.errors import LabError
from llmlab.models.device import KERNELS, attention_kernel
from llmlab.training.engine.run import run
from tests.conftest import Told

SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "Bloom": {"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "GPTNeo": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 128,
    },
    "Gemma2": {
        **SMALL,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    },
    "SwitchTransformers": {
        "vocab_size": 512,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "num_experts": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "decoder_start_token_id": 0,
    },
    "Llama": {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128},
}


@pytest.fixture
def trained(tmp_path, tokenizer):
    """Trains a tiny model of a family for two steps; returns what its record says of attention,
    and the screen.
    """

    def train(family, cls=SFTConfig, row=None, **changes):
        about = getattr(transformers, f"{family}Config")(**MODELS[family])
        auto = (
            transformers.AutoModelForSeq2SeqLM
            if about.is_encoder_decoder
            else transformers.AutoModelForCausalLM
        )
        auto.from_config(about, attn_implementation="eager").save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        row = row or {"prompt": "Who is he?", "completion": "Ahab"}
        (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 6)
        if cls is SFTConfig:
            changes["packing"] = False
        told = Told()
        config = cls(
            policy_checkpoint=str(tmp_path / family),
            datasets=[str(tmp_path / "rows.jsonl")],
            eval_fraction=0,
            max_steps=2,
            warmup_steps=0,
            batch_size=2,
            gradient_accumulation_steps=1,
            max_length=48,
            report_to=[],
            adapter="none",
            output_dir=str(tmp_path / "run"),
            device="cpu",
            **changes,
        )
        run(config, reporter=told)
        return json.loads((tmp_path / "run" / "run.json").read_text())["attention"], told.text

    return train


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_auto_takes_what_the_architecture_supports(trained, family):
    best = "sdpa" if family == "Llama" else "eager"
    recorded, screen = trained(family)
    assert recorded == best and f"{best} attention" in screen


@pytest.mark.parametrize("family", [family for family in MODELS if family != "Llama"])
def test_what_is_not_supported_is_refused_by_name(trained, family, tmp_path):
    with pytest.raises(
        LabError, match=r'`attention_backend` "sdpa" is not supported by \w+ models'
    ) as refused:
        trained(family, attention_backend="sdpa")
    assert "use auto" in refused.value.remedy and "eager" in refused.value.remedy
    assert ("flex" in refused.value.remedy) is (family == "Gemma2")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_reward_model_is_held_to_the_same(trained):
    row = {"prompt": "Who is he?", "chosen": "Ahab", "rejected": "Bildad"}
    with pytest.raises(LabError, match='"sdpa" is not supported by bloom models'):
        trained("Bloom", RewardConfig, row, attention_backend="sdpa")


@pytest.mark.slow
def test_an_explicit_choice_is_taken(trained):
    assert trained("Llama", attention_backend="eager")[0] == "eager"


def test_flex_attention_which_cannot_learn_on_a_processor_is_refused(trained, tmp_path):
    with pytest.raises(LabError, match='"flex" needs a GPU'):
        trained("Llama", attention_backend="flex")
    assert not (tmp_path / "run" / "run.json").exists()
    assert attention_kernel(SFTConfig(attention_backend="flex"), "cuda") == "flex_attention"


def test_auto_is_eager_on_apple_gpus():
    assert attention_kernel(SFTConfig(), "mps") == "eager"
    assert attention_kernel(SFTConfig(attention_backend="sdpa"), "mps") == "sdpa"
    assert attention_kernel(SFTConfig(), "cpu") is None


def test_transformers_says_by_these_names_what_a_model_supports():
    assert all(isinstance(getattr(transformers.PreTrainedModel, flag), bool) for flag, _ in KERNELS.values())
    assert transformers.LlamaForCausalLM._supports_sdpa

"""Memory as it is predicted, beside what torch's profiler counts in a real update."""

import json

import pytest
import torch
import trl.trainer.utils
from transformers import LlamaConfig, LlamaForCausalLM

from llmlab.config import (
    DPOConfig,
    DualHeadConfig,
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from llmlab.data.tokenizer import load_tokenizer
from llmlab.planning.memory import checkpoint_bytes, predicted
from llmlab.planning.plan import make_plan
from llmlab.training.engine.run import run
from llmlab.ui.plan import forecast_lines
from tests.planning.counting import allocated

pytestmark = pytest.mark.slow  # trains

SHORT = dict(
    max_steps=2,
    warmup_steps=0,
    eval_fraction=0.0,
    report_to=[],
    save_every=10**6,
    learning_rate=1e-4,
    device="cpu",
)
ROWS = 256  # tokens
VOCABULARY = 512


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small Llama of the library's with the lab's tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)
    load_tokenizer("byte").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of every shape, all longer than what is kept of them."""
    folder = tmp_path_factory.mktemp("rows")
    said = "the whale " * 60
    rows = {  # several conversations in a row, and pairs of which one is a little shorter: there is a mask
        "talk": [{"prompt": f"Who is {i}?", "completion": said[:96]} for i in range(240)],
        "text": [{"text": said[: 40 + i]} for i in range(240)],
        "pairs": [{"prompt": f"Who is {i}?", "chosen": said, "rejected": said[:205]} for i in range(24)],
        "ask": [{"prompt": f"Who is {i}? {said[:100]}", "answer": "Ahab"} for i in range(24)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def shape(**values):
    heads = {} if "attention_type" in values else {"n_kv_heads": 2}
    return ModelConfig(
        tokenizer_name="byte",
        vocab_size=1024,
        d_model=192,
        n_layers=6,
        n_heads=6,
        d_ff=512,
        max_seq_len=ROWS,
        **heads,
        **values,
    )


@pytest.mark.parametrize(
    "values",
    [
        dict(batch_size=6),
        dict(batch_size=6, gradient_checkpointing=True),
        dict(batch_size=3, optimizer="lion"),
        dict(batch_size=4, model=shape(attention_type="mha", activation="gelu", norm_type="layernorm")),
    ],
    ids=["adamw", "checkpointing", "lion", "gelu"],
)
def test_base_training(values, tmp_path):
    given = {
        "model": shape(),
        "datasets": ["llmlab:moby-dick"],
        "gradient_accumulation_steps": 2,
        **SHORT,
        **values,
    }
    config = PretrainConfig(output_dir=str(tmp_path / "run"), **given)
    assert predicted(config).allocated == pytest.approx(allocated(config), rel=0.15)


LONG = dict(max_length=ROWS)
JOBS = {
    "continued": (PretrainConfig, "text", dict(**LONG, batch_size=4, gradient_accumulation_steps=2)),
    "continued-lora": (PretrainConfig, "text", dict(**LONG, batch_size=4, adapter="lora", lora_dropout=0.05)),
    "sft": (SFTConfig, "talk", dict(**LONG, batch_size=4, gradient_accumulation_steps=2)),
    "sft-checkpointing": (SFTConfig, "talk", dict(**LONG, batch_size=4, gradient_checkpointing=True)),
    "sft-lora": (SFTConfig, "talk", dict(**LONG, batch_size=4, adapter="lora", lora_dropout=0.05)),
    "sft-lora-attention": (
        SFTConfig,
        "talk",
        dict(**LONG, batch_size=4, adapter="lora", lora_dropout=0.0, lora_targets="attention"),
    ),
    "dpo": (DPOConfig, "pairs", dict(**LONG, max_prompt_length=64, batch_size=4, mini_batch_size=2)),
    "dpo-live": (
        DPOConfig,
        "pairs",
        dict(**LONG, max_prompt_length=64, batch_size=4, mini_batch_size=2, reference="live"),
    ),
    "dpo-padded": (
        DPOConfig,
        "pairs",
        dict(**LONG, max_prompt_length=64, batch_size=4, mini_batch_size=2, padding_free=False),
    ),
    "dpo-lora": (
        DPOConfig,
        "pairs",
        dict(**LONG, max_prompt_length=64, batch_size=4, mini_batch_size=2, adapter="lora"),
    ),
    "reward": (
        RewardConfig,
        "pairs",
        dict(**LONG, max_prompt_length=64, batch_size=2, gradient_accumulation_steps=2),
    ),
    "grpo": (
        GRPOConfig,
        "ask",
        dict(
            max_prompt_length=132,
            max_new_tokens=56,
            batch_size=8,
            mini_batch_size=4,
            group_size=4,
            reward_model="exact_match",
            beta=0.1,
        ),
    ),
    "ppo": (
        PPOConfig,
        "ask",
        dict(
            max_prompt_length=132,
            max_new_tokens=56,
            batch_size=8,
            mini_batch_size=4,
            reward_model="exact_match",
        ),
    ),
    "dual-head": (
        DualHeadConfig,
        "pairs",
        dict(**LONG, max_prompt_length=64, batch_size=2, gradient_accumulation_steps=2),
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_training_of_a_checkpoint(job, llama, data, tmp_path, monkeypatch):
    cls, rows, values = JOBS[job]
    cache = (
        {"cache_dir": str(tmp_path / "cache")}
        if cls is DPOConfig and values.get("reference") != "live"
        else {}
    )
    config = cls(
        **{cls.STARTS_FROM: llama},
        datasets=[str(data / f"{rows}.jsonl")],
        output_dir=str(tmp_path / "run"),
        **{**SHORT, "gradient_accumulation_steps": 1, **values, **cache}
        if "mini_batch_size" not in values
        else {**SHORT, **values, **cache},
    )
    # a slice of logits is set aside for 32,768 words, most of which are never touched here
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", VOCABULARY)
    counted = allocated(config)
    assert predicted(config).allocated == pytest.approx(counted, rel=0.15), f"{counted / 1e6:.1f} MB"


def test_the_disk_a_run_takes(llama, data, tmp_path):
    config = SFTConfig(
        policy_checkpoint=llama,
        datasets=[str(data / "talk.jsonl")],
        max_length=64,
        batch_size=2,
        max_steps=4,
        gradient_accumulation_steps=1,
        save_every=1,
        eval_every=2,
        save_total_limit=2,
        save_best_only=False,
        report_to=[],
        output_dir=str(tmp_path / "run"),
    )
    run(config)
    written = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    one_more = written + max(
        sum(file.stat().st_size for file in folder.rglob("*"))
        for folder in (tmp_path / "run").glob("checkpoint-*")
    )
    assert written < checkpoint_bytes(config) == pytest.approx(one_more, rel=0.1)


def test_what_is_said_before_a_run(llama):
    lines = list(forecast_lines(make_plan(SFTConfig(policy_checkpoint=llama, learning_rate=0.9))))
    assert lines[0][0].startswith("memory: about ") and not lines[0][1]
    assert any(line.startswith("warning: `learning_rate` 0.9 is above") for line, warns in lines if warns)

"""Mixtures of experts: an adapter leaves the routers alone; the loss that keeps experts in use is kept."""

import math

import pytest
import torch
from peft import PeftModel
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from llmlab.config import DPOConfig, PPOConfig, SFTConfig
from llmlab.data.tokenizer import load_tokenizer
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import write_rows

SHAPE = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


@pytest.fixture(params=["qwen2_moe", "mixtral"])
def mixture(request, base_run, tmp_path):
    tokenizer = load_tokenizer(str(base_run.model))
    torch.manual_seed(0)
    if request.param == "mixtral":
        model = MixtralForCausalLM(
            MixtralConfig(vocab_size=len(tokenizer), num_local_experts=4, router_aux_loss_coef=0.05, **SHAPE)
        )
    else:
        model = Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                vocab_size=len(tokenizer),
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=48,
                router_aux_loss_coef=0.05,
                shared_expert_intermediate_size=64,
                **SHAPE,
            )
        )
    folder = tmp_path / request.param
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_routers_and_the_balancing_loss(mixture, adapter, tmp_path):
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 2 else "Stubb"} for i in range(120)]
    result = run(
        SFTConfig(
            policy_checkpoint=mixture,
            datasets=[write_rows(tmp_path / "rows.jsonl", rows)],
            max_steps=30,
            learning_rate=5e-3,
            batch_size=8,
            gradient_accumulation_steps=1,
            max_length=64,
            eval_every=30,
            eval_fraction=0.1,
            log_every=5,
            adapter=adapter,
            report_to=[],
            output_dir=str(tmp_path / "run"),
            warmup_steps=0,
            **({"lora_dropout": 0.0} if adapter == "lora" else {}),
        )
    )
    lines = [line for line in RunFolder(result.folder).metrics() if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"] and all(line["aux_loss"] > 0 for line in lines)
    before, after = load_model(mixture)[0], load_model(str(result.model))[0]
    if adapter == "lora":
        assert isinstance(after, PeftModel)
        adapted = {name for name, _ in after.named_parameters() if "lora_" in name}
        assert adapted and not any(
            part in name for name in adapted for part in (".gate.", "router", "shared_expert_gate")
        )
        after = after.merge_and_unload()
    routers = [name for name, _ in before.named_parameters() if name.endswith(".mlp.gate.weight")]
    assert routers
    same = [torch.equal(before.get_parameter(name), after.get_parameter(name)) for name in routers]
    assert all(same) if adapter == "lora" else not any(same)


@pytest.mark.slow
@pytest.mark.parametrize("mixture", ["mixtral"], indirect=True)
@pytest.mark.parametrize("kind", [SFTConfig, DPOConfig])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_held_out_loss_is_without_the_balancing_loss_of_a_batch(mixture, kind, adapter, tmp_path):
    """That one is no mean over tokens or pairs: with it the loss would depend on the micro-batch."""
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab " * (1 + i % 5)} for i in range(20)]
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "Stubb"} for row in rows]
    found = []
    for size in (1, 4):
        cut = (
            dict(batch_size=8, mini_batch_size=size, reference="live", max_prompt_length=32)
            if kind is DPOConfig
            else dict(batch_size=size, packing=False)
        )
        (tmp_path / str(size)).mkdir()
        result = run(
            kind(
                policy_checkpoint=mixture,
                datasets=[
                    write_rows(tmp_path / str(size) / "rows.jsonl", rows if kind is SFTConfig else pairs)
                ],
                max_steps=1,
                learning_rate=1e-9,
                warmup_steps=0,
                eval_fraction=0.5,
                eval_rows=7,
                max_length=64,
                report_to=[],
                adapter=adapter,
                sample_tokens=0,
                output_dir=str(tmp_path / str(size) / "run"),
                **cut,
            )
        )
        found.append(result.metrics["before_eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    if kind is DPOConfig:
        assert found[0] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mixture", ["mixtral"], indirect=True)
def test_ppo_balances_the_experts_and_answers_whatever_the_config_says_of_router_logits(mixture, tmp_path):
    """With `output_router_logits` in its config, transformers would compute the loss at every token."""
    model, tokenizer = load_model(mixture)
    model.config.output_router_logits = True
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = run(
        PPOConfig(
            policy_checkpoint=str(tmp_path / "model"),
            datasets=[write_rows(tmp_path / "rows.jsonl", [{"prompt": f"Who is {i}?"} for i in range(12)])],
            reward_model="length | 1 | 6",
            **dict(batch_size=4, mini_batch_size=2, max_new_tokens=4, max_steps=2, log_every=1),
            **dict(eval_fraction=0.0, warmup_steps=0, sample_tokens=0, report_to=[]),
            output_dir=str(tmp_path / "run"),
        )
    )
    lines = [line for line in RunFolder(result.folder).metrics() if "aux_loss" in line]
    assert len(lines) == 2 and all(line["aux_loss"] >= 1 for line in lines)  # 1: tokens spread evenly
    assert load_model(str(result.model))[0].config.output_router_logits

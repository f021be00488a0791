"""The reference of GRPO, PPO and DPO is the policy as it was at the start, whatever it is made of;
dropout is what is asked for.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmlab.config import DPOConfig, GRPOConfig, PPOConfig, RewardConfig, SFTConfig
from llmlab.errors import LabError
from llmlab.models.adapters import set_dropout
from llmlab.models.load import load_model, load_scorer
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import write_rows


def tune(start, folder, steps=16, **changes):
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 3 else "Stubb"} for i in range(60)]
    return str(
        run(
            SFTConfig(
                policy_checkpoint=start,
                datasets=[write_rows(folder.parent / f"{folder.name}.jsonl", rows)],
                max_steps=steps,
                learning_rate=5e-3,
                batch_size=8,
                gradient_accumulation_steps=1,
                max_length=64,
                eval_fraction=0.0,
                output_dir=str(folder),
                report_to=[],
                **changes,
            )
        ).model
    )


@pytest.fixture(scope="module")
def policies(base_run, tmp_path_factory):
    """Policies of every make: all weights, an adapter far from its base,
    and an adapter trained on that adapter's result.
    """
    folder = tmp_path_factory.mktemp("policies")
    full = tune(str(base_run.folder), folder / "full")
    adapter = tune(full, folder / "adapter", adapter="lora", lora_r=4, lora_dropout=0.1)
    from llmlab.models.merge import merge

    merge(adapter, folder / "merged")
    second = Path(
        tune(
            str(folder / "merged"),
            folder / "second",
            steps=10,
            adapter="lora",
            lora_r=2,
            lora_targets="attention",
        )
    )
    shutil.copytree(second, folder / "nested")
    about = json.loads((folder / "nested" / "adapter_config.json").read_text())
    (folder / "nested" / "adapter_config.json").write_text(
        json.dumps({**about, "base_model_name_or_path": adapter})
    )
    (folder / "nested" / "base.json").unlink()
    return {"full": full, "adapter": adapter, "nested": str(folder / "nested"), "second": str(second)}


ON_POLICY = {
    GRPOConfig: dict(beta=0.1, iterations=1, group_size=2),
    PPOConfig: dict(kl_coef=0.1, ppo_epochs=1),
}


def on_policy(kind, policy, folder, **changes):
    rows = [{"prompt": f"Who is {i}?", "answer": "Ahab"} for i in range(12)]
    values = dict(
        policy_checkpoint=policy,
        datasets=[write_rows(folder / "prompts.jsonl", rows)],
        reward_model="exact_match",
        batch_size=8,
        mini_batch_size=8,
        max_new_tokens=6,
        max_steps=1,
        learning_rate=1e-9,
        warmup_steps=0,
        scheduler="none",
        eval_fraction=0.0,
        log_every=1,
        save_every=1,
        max_prompt_length=64,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    return kind(**{**values, **ON_POLICY[kind], **changes})


MAKES = {
    "full": dict(),
    "new-adapter": dict(adapter="lora", lora_r=4),
    "adapter": dict(),
    "adapter-goes-on": dict(adapter="lora"),
    "nested": dict(),
    "qlora": dict(adapter="qlora", lora_r=4),
    "adapter-quantised": dict(adapter="qlora"),
}


PAIRED = [
    *(
        (GRPOConfig, make)
        for make in ("full", "new-adapter", "adapter", "adapter-goes-on", "nested", "qlora")
    ),
    *((PPOConfig, make) for make in ("full", "adapter", "adapter-quantised")),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, make", PAIRED)
def test_kl_of_the_first_update_is_0(policies, tmp_path, kind, make):
    policy = policies["nested" if make == "nested" else "adapter" if make.startswith("adapter") else "full"]
    result = run(on_policy(kind, policy, tmp_path, **MAKES[make]))
    figures = [line["kl"] for line in RunFolder(result.folder).metrics() if "kl" in line]
    assert figures == pytest.approx([0.0], abs=1e-6)
    assert not (result.model / "ref").exists()


@pytest.mark.slow
def test_an_adapter_on_an_adapter_is_both(policies):
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        nested, merged = (load_model(policies[name])[0].eval()(ids).logits for name in ("nested", "second"))
        alone = load_model(policies["adapter"])[0].eval()(ids).logits
    torch.testing.assert_close(nested, merged, atol=1e-4, rtol=1e-4)
    assert (nested - alone).abs().max() > 1e-2
    states = []
    for name in ("nested", "second"):
        torch.manual_seed(0)  # of the new head
        states.append(load_scorer(policies[name], pad=0).eval()(ids).logits)
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_an_adapter_is_not_rounded_in_silence(policies, tmp_path):
    with pytest.raises(LabError, match=r"merged into quantised weights.*llmlab merge"):
        run(on_policy(GRPOConfig, policies["nested"], tmp_path, adapter="qlora"))


def pairs(folder, count=24):
    rows = [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(count)]
    return write_rows(folder / "pairs.jsonl", rows)


def preference(kind, policy, folder, **changes):
    values = dict(
        policy_checkpoint=policy,
        datasets=[pairs(folder)],
        batch_size=4,
        max_steps=1,
        learning_rate=1e-9,
        warmup_steps=0,
        scheduler="none",
        eval_fraction=0.0,
        log_every=1,
        save_every=1,
        max_length=64,
        max_prompt_length=48,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    more = dict(mini_batch_size=4) if kind is DPOConfig else dict(gradient_accumulation_steps=1)
    if kind is DPOConfig and changes.get("reference") != "live":
        more["cache_dir"] = str(folder / "cache")
    return kind(**{**values, **more, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference, make",
    [("sequential", "full"), ("sequential", "adapter"), ("live", "adapter"), ("live", "nested")],
)
def test_dpo_begins_with_a_loss_of_log_2(policies, tmp_path, make, reference):
    config = preference(DPOConfig, policies[make], tmp_path, reference=reference)
    lines = RunFolder(run(config).folder).metrics()
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx([0.6931472], abs=1e-6)
    assert [line["rewards/margins"] for line in lines if "loss" in line] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DPOConfig, RewardConfig, GRPOConfig, PPOConfig])
def test_dropout_of_an_adapter_is_the_one_asked_for(policies, tmp_path, kind):
    """With dropout the figures are others than without."""
    figures = []
    for dropout in (0.0, 0.5):
        folder = tmp_path / str(dropout)
        folder.mkdir()
        steps = (
            dict(max_steps=2, learning_rate=1e-3) if kind is RewardConfig else {}
        )  # its adapter is new: B is 0 at first
        make = on_policy if kind in ON_POLICY else preference
        result = run(make(kind, policies["adapter"], folder, adapter="lora", lora_dropout=dropout, **steps))
        lines = [line for line in RunFolder(result.folder).metrics() if "loss" in line]
        figures.append(lines[-1]["entropy" if kind in ON_POLICY else "loss"])
    assert abs(figures[0] - figures[1]) > 1e-6


def test_all_other_dropout_is_off():
    """Of modules, and of the rates that attention and this package's own model hold as numbers."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from tests.conftest import small_model

    small = dict(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    models = [
        GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)),
        LlamaForCausalLM(LlamaConfig(**small, attention_dropout=0.3)),
        small_model(dropout=0.3),
    ]
    ids = torch.arange(1, 20)[None]
    for model in models:
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(model(ids).logits, model(ids).logits)
        set_dropout(model, 0.0)
        assert torch.equal(model(ids).logits, model(ids).logits)

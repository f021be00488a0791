"""Merging is exact, and a merged model is the start of the next adapter."""

import shutil

import pytest
import torch

from llmlab.config import DPOConfig
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.models.merge import merge
from llmlab.runs.manifest import verify
from llmlab.training.engine.run import run
from tests.conftest import write_rows
from tests.training.conftest import grpo_config


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_merged_logits_are_the_adapters(policy, tmp_path, adapter):
    made = run(
        grpo_config(
            policy, tmp_path, adapter=adapter, lora_r=4, learning_rate=5e-3, max_steps=6, eval_every=6
        )
    )
    lines = merge(str(made.folder))
    assert lines[-1] == str(made.folder / "merged") and (len(lines) == 2) == (adapter == "qlora")
    assert verify(made.folder / "merged") == ""
    ids = torch.randint(3, 500, (2, 20))
    adapted, merged, base = (
        load_model(name)[0].eval()(input_ids=ids).logits
        for name in (str(made.folder), str(made.folder / "merged"), policy)
    )
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert (merged - base).abs().max() > 1e-2, "the adapter had learned something"
    with pytest.raises(LabError, match="already exists"):
        merge(str(made.folder))
    pairs = [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(20)]
    following = run(
        DPOConfig(
            policy_checkpoint=str(made.folder / "merged"),
            datasets=[write_rows(tmp_path / "pairs.jsonl", pairs)],
            adapter="lora",
            max_steps=2,
            batch_size=4,
            mini_batch_size=4,
            max_length=64,
            max_prompt_length=48,
            eval_every=2,
            output_dir=str(tmp_path / "dpo"),
            cache_dir=str(tmp_path / "cache"),
            report_to=[],
        )
    )
    assert (
        load_model(str(following.folder))[0].peft_config["default"].base_model_name_or_path.endswith("merged")
    )


@pytest.mark.slow
def test_an_adapter_whose_base_has_changed_is_refused(policy, base_run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(policy, base)
    made = run(grpo_config(str(base), tmp_path, adapter="lora", lora_r=4, max_steps=2, eval_every=2))
    load_model(str(made.folder))
    shutil.copy(base_run.model / "model.safetensors", base / "model.safetensors")
    with pytest.raises(
        LabError, match=r"is an adapter of another base: .*base does not hold the weights it was trained on"
    ):
        load_model(str(made.folder))


def test_what_has_no_adapter(policy):
    with pytest.raises(LabError, match="has no adapter to merge"):
        merge(policy)

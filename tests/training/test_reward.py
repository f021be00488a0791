"""Reward models: they learn held-out pairs, their loss is the formula,
their scores do not depend on padding or order.
"""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from llmlab.config import RewardConfig
from llmlab.data.pairs import dpo_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.models.load import load_model, load_scorer
from llmlab.rewards.model import scores
from llmlab.training.engine.run import run
from llmlab.training.methods.reward import whole_rows

NAMES = ["Ahab", "Starbuck", "Queequeg", "Stubb", "Ishmael"]


def pairs(path, count, seed=0):
    """The better answer thanks the captain; the rest is chance."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        who, what = rng.choice(NAMES), rng.choice(["sail", "row", "rest"])
        good, bad = f"Aye, {who}, we {what} now.", f"No, {who}, we {what} not."
        rows.append({"prompt": f"{number}: shall we {what}?", "chosen": good, "rejected": bad})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(base_run, folder, **changes):
    values = dict(
        policy_checkpoint=str(base_run.model),
        datasets=[pairs(folder / "pairs.jsonl", 200)],
        max_steps=30,
        learning_rate=3e-3,
        warmup_steps=0,
        batch_size=8,
        gradient_accumulation_steps=1,
        max_length=96,
        max_prompt_length=64,
        eval_every=30,
        eval_fraction=0.2,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    return RewardConfig(**{**values, **changes})


@pytest.mark.slow
def test_it_learns_held_out_pairs_and_scores_by_name(base_run, tmp_path):
    result = run(config(base_run, tmp_path))
    before, after = (
        result.metrics["before_eval_loss"],
        result.metrics["eval_loss"],
    )  # accuracy before is that of a random head
    assert after < before / 2 and result.metrics["eval_accuracy"] > 0.95
    model = load_scorer(str(result.folder))
    tokenizer = load_tokenizer(str(result.model))
    talks = [
        [{"role": "user", "content": "shall we sail?"}, {"role": "assistant", "content": text}]
        for text in ("Aye, Stubb, we sail now.", "No, Stubb, we sail not.")
    ]
    good, bad = scores(model, tokenizer, talks)
    assert good > bad + 1
    alone = [scores(model, tokenizer, [talk])[0] for talk in reversed(talks)]
    assert alone == pytest.approx([bad, good], abs=1e-4)
    with pytest.raises(LabError, match="is a reward model: it scores answers and cannot generate any"):
        load_model(str(result.folder))


@pytest.mark.slow
def test_the_loss_is_the_formula(base_run, tmp_path):
    made = config(base_run, tmp_path, center_rewards=0.0)
    result = run(made)
    tokenizer = load_tokenizer(str(result.model))
    ensure_chat_template(tokenizer)
    rows = whole_rows(dpo_data(made, tokenizer).eval["pairs"])
    model = load_scorer(str(result.folder)).eval()
    with torch.no_grad():
        reward = lambda ids: model(input_ids=torch.tensor([ids])).logits[0, 0]  # noqa: E731
        margins = torch.stack([reward(row["chosen_ids"]) - reward(row["rejected_ids"]) for row in rows])
    assert result.metrics["eval_loss"] == pytest.approx(-F.logsigmoid(margins).mean().item(), rel=1e-3)
    assert result.metrics["eval_accuracy"] == pytest.approx((margins > 0).float().mean().item(), abs=1e-6)


@pytest.mark.slow
def test_with_an_adapter(base_run, tmp_path):
    result = run(config(base_run, tmp_path, adapter="lora", lora_r=8, learning_rate=1e-2))
    assert result.metrics["eval_accuracy"] > 0.9
    assert (result.model / "adapter_config.json").is_file()
    talk = [
        {"role": "user", "content": "shall we row?"},
        {"role": "assistant", "content": "Aye, Ahab, we row now."},
    ]
    assert len(scores(load_scorer(str(result.folder), pad=0), load_tokenizer(str(result.model)), [talk])) == 1


def test_encoders_with_a_scalar_head_score_too(tmp_path):
    shape = dict(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
    )
    BertForSequenceClassification(BertConfig(**shape)).save_pretrained(tmp_path)
    tokenizer = load_tokenizer("byte")
    tokenizer.chat_template = None
    talks = [
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": text}]
        for text in ("Ahab", "Nobody at all")
    ]
    both = scores(load_scorer(str(tmp_path)), tokenizer, talks)
    assert both[0] == pytest.approx(scores(load_scorer(str(tmp_path)), tokenizer, talks[:1])[0], abs=1e-5)


def test_what_cannot_score(tmp_path):
    with pytest.raises(LabError, match="no such checkpoint"):
        load_scorer("./nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LabError, match="cannot load a model that scores"):
        load_scorer(str(tmp_path))


def test_an_adapter_on_4_bits_is_trained_in_the_precision_that_was_asked_for(base_run, tmp_path):
    """TRL would round it to bf16, and the score's head could not be read beside it."""
    short = dict(max_steps=2, warmup_steps=0, save_best_only=False)
    made = run(config(base_run, tmp_path, adapter="qlora", precision="fp32", **short))
    weights = load_file(made.folder / "final" / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}

"""GRPO on a rollout that is given: this package's trainer, TRL's own,
and the formulas in double precision agree.
"""

import math

import pytest
import torch
import trl
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.models.adapters import frozen_copy
from llmlab.models.load import load_model
from llmlab.training.trainers.grpo import GRPOTrainer
from tests.conftest import small_model

SIZE, BETA, CLIP, PROMPTS = 4, 0.3, 0.05, ["Who is 1?", "Who is 22?", "Who is 333?", "Who is 4?"]
WORDS = ["Ahab", "Stubb", "Ahab Stubb", "The whale, the sea", "x", "Starbuck says so", "Ahab, Ahab", "no"]


@pytest.fixture(scope="module")
def policy(tokenizer_folder, tmp_path_factory):
    """A small model of the library, which TRL loads again by its name, with the tokenizer of the tests."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = load_tokenizer(str(tokenizer_folder))
    ensure_chat_template(tokenizer)
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            initializer_range=0.1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder)
    return str(folder)


def reward(completions, **columns):
    return [len(set(answer[0]["content"])) + 0.5 * answer[0]["content"].count("A") for answer in completions]


def rollout(prompts, trainer):
    """Answers of different lengths, an end behind some and none behind others."""
    tokenizer, end = trainer.processing_class, trainer.eos_token_ids[0]
    spoken = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in prompts
    ]
    answers = [
        tokenizer(WORDS[(index * 5 + index // SIZE) % len(WORDS)], add_special_tokens=False)["input_ids"]
        + [end] * (index % 3 > 0)
        for index in range(len(prompts))
    ]
    return {"prompt_ids": spoken, "completion_ids": answers, "logprobs": None}


def build(kind, policy, folder, micro, **more):
    model, tokenizer = load_model(policy, dtype=torch.float32)
    tokenizer.padding_side = "left"
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in PROMPTS]})
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=16 // micro,
        num_generations=SIZE,
        num_iterations=2,
        epsilon=CLIP,
        beta=BETA if kind is trl.GRPOTrainer else 0.0,
        max_completion_length=12,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
    )
    if kind is GRPOTrainer:
        more = dict(has_reference=True, reference=frozen_copy(model), kl_weight=BETA)
    trainer = kind(
        model=model,
        reward_funcs=[reward],
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        rollout_func=rollout,
        **more,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 16 // micro
    return trainer


def shaken(model):
    """Moves the weights a little, so that ratios are not 1 and some are clipped."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)


def step(kind, policy, folder, micro):
    """Returns the rollout, the loss of an update on it after the policy has moved,
    its gradients and figures.
    """
    trainer = build(kind, policy, folder, micro)
    rows = [row for row in trainer.train_dataset for _ in range(SIZE)]
    scored = trainer._generate_and_score_completions(rows)
    shaken(trainer.model)
    total = 0.0
    for start in range(0, len(rows), micro):
        part = {
            name: value[start : start + micro] if torch.is_tensor(value) and value.dim() else value
            for name, value in scored.items()
        }
        loss = trainer.compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    figures = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}
    return scored, total, {name: p.grad.clone() for name, p in trainer.model.named_parameters()}, figures


@pytest.fixture(scope="module")
def ours(policy, tmp_path_factory):
    return step(GRPOTrainer, policy, tmp_path_factory.mktemp("ours"), 16)


def by_hand(policy, scored):
    """Returns loss, model, advantages, KL and share of clipped tokens,
    in double precision and from the formulas alone.
    """
    start, tokenizer = load_model(policy, dtype=torch.float32)
    moved, _ = load_model(policy, dtype=torch.float32)
    shaken(moved)
    ids = torch.cat([scored["prompt_ids"], scored["completion_ids"]], dim=1)
    seen = torch.cat([scored["prompt_mask"], scored["completion_mask"]], dim=1)
    width, mask = scored["completion_ids"].size(1), scored["completion_mask"].double()

    def said(model):
        logits = model.double().eval()(input_ids=ids, attention_mask=seen).logits[:, -width - 1 : -1]
        return logits.double().log_softmax(-1).gather(2, ids[:, -width:, None]).squeeze(-1)

    texts = tokenizer.batch_decode(
        [row[m.bool()] for row, m in zip(scored["completion_ids"], mask, strict=True)],
        skip_special_tokens=True,
    )
    rewards = torch.tensor(reward([[{"content": text}] for text in texts]), dtype=torch.float64).view(
        -1, SIZE
    )
    spread = ((rewards - rewards.mean(1, keepdim=True)) ** 2).sum(1, keepdim=True).div(SIZE - 1).sqrt()
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
    with torch.no_grad():
        before = said(start)
    now = said(moved)
    ratio, a = (now - before).exp(), advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a)
    kl = ratio * (
        (before - now).exp() - (before - now) - 1
    )  # with the ratio its gradient is that of the KL itself
    loss = ((-gain + BETA * kl) * mask).sum() / mask.sum()
    clipped = (((ratio < 1 - CLIP) & (a < 0)) | ((ratio > 1 + CLIP) & (a > 0))).double()
    return loss, moved, advantages, (kl * mask).sum() / mask.sum(), (clipped * mask).sum() / mask.sum()


def test_loss_gradients_and_figures_are_those_of_the_formulas(policy, ours):
    scored, total, gradients, figures = ours
    loss, model, advantages, kl, clipped = by_hand(policy, scored)
    torch.testing.assert_close(scored["advantages"].double(), advantages, atol=1e-5, rtol=1e-5)
    assert total == pytest.approx(loss.item(), abs=1e-5) and figures["kl"] == pytest.approx(
        kl.item(), abs=1e-5
    )
    assert 0.05 < clipped.item() < 0.95 and figures["clip_ratio/region_mean"] == pytest.approx(
        clipped.item(), abs=1e-6
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        wanted = parameter.grad
        assert (gradients[name].double() - wanted).norm() <= 1e-3 * wanted.norm() + 1e-7, name


@pytest.mark.parametrize("micro", [16, 4])
def test_it_agrees_with_the_trainer_of_trl(policy, ours, tmp_path, monkeypatch, micro):
    """Whatever the micro-batch: the mean is over the tokens of the whole update."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    scored, total, gradients, figures = step(trl.GRPOTrainer, policy, tmp_path, micro)
    for name in ("completion_ids", "completion_mask", "prompt_ids"):
        assert torch.equal(scored[name], ours[0][name])
    for name in ("advantages", "old_per_token_logps", "ref_per_token_logps"):
        torch.testing.assert_close(scored[name], ours[0][name], atol=1e-5, rtol=1e-5)
    assert total == pytest.approx(ours[1], abs=1e-5) and math.isfinite(total)
    for name, gradient in gradients.items():
        assert (gradient - ours[2][name]).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    if micro == 16:
        for name in (
            "kl",
            "entropy",
            "clip_ratio/region_mean",
            "reward",
            "reward_std",
            "rewards/reward/mean",
        ):
            assert figures[name] == pytest.approx(ours[3][name], abs=1e-6), name


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_padding_before_a_prompt_moves_no_position(policy, tmp_path, kind):
    """Models that know where a token stands in its row: log-probabilities are those of each row alone,
    without padding.
    """
    tokenizer = load_tokenizer(policy)
    if kind == "learned":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=512, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
        )
    else:
        model = small_model(vocab_size=512, max_seq_len=128, positional_encoding="sinusoidal")
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    for folder in (model, tokenizer):
        folder.save_pretrained(tmp_path / "policy")
    trainer = build(GRPOTrainer, str(tmp_path / "policy"), tmp_path / "run", 16)
    scored = trainer._generate_and_score_completions(
        [row for row in trainer.train_dataset for _ in range(SIZE)]
    )
    assert (scored["prompt_mask"][:, 0] == 0).any()
    model, _ = load_model(str(tmp_path / "policy"), dtype=torch.float32)
    for index in range(len(scored["prompt_ids"])):
        prompt, answer = (
            scored[f"{part}_ids"][index][scored[f"{part}_mask"][index].bool()]
            for part in ("prompt", "completion")
        )
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(-1)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            torch.testing.assert_close(scored[name][index, : len(answer)], wanted, atol=2e-5, rtol=1e-4)

"""PPO: advantages from the definition, token rewards, one update by the formulas, a critic that learns,
exact resume.
"""

import shutil
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from llmlab.config import PPOConfig
from llmlab.config.base import validate
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder
from llmlab.training.advantages import (
    ValueHead,
    clipped_value_loss,
    explained_variance,
    gae,
    token_rewards,
    whiten,
)
from llmlab.training.engine.run import run
from llmlab.training.methods.ppo import PPOTrainer
from tests.conftest import write_rows


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.floats(0.1, 1),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_gae_is_the_double_sum_of_the_definition(seed, gae_lambda, gamma, lengths):
    torch.manual_seed(seed)
    size = max(lengths)
    rewards, values = (
        torch.randn(len(lengths), size, dtype=torch.float64),
        torch.randn(len(lengths), size, dtype=torch.float64),
    )
    mask = torch.tensor([[1.0] * n + [0.0] * (size - n) for n in lengths], dtype=torch.float64)
    got = gae(rewards * mask, values, mask, gamma, gae_lambda)
    for b, n in enumerate(lengths):
        delta = [
            rewards[b, t] + gamma * (values[b, t + 1] if t + 1 < n else 0) - values[b, t] for t in range(n)
        ]
        for t in range(n):
            wanted = sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(n - t))
            assert got[b, t].item() == pytest.approx(float(wanted), abs=1e-9)
        assert (got[b, n:] == 0).all()


def test_with_lambda_1_advantage_and_value_are_the_return():
    rewards, values = torch.tensor([[0.1, -0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    mask = torch.ones(1, 3)
    assert (gae(rewards, values, mask, 1.0, 1.0) + values).tolist()[0] == pytest.approx([0.9, 0.8, 1.0])


def test_token_rewards_charge_the_kl_and_pay_at_the_last_token():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    old, reference = torch.full((2, 3), -1.0), torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -1.0, -1.5]])
    got = token_rewards(torch.tensor([2.0, 3.0]), old, reference, mask, 0.1)
    assert got[0].tolist() == pytest.approx([0.0, 2.0 - 0.1, 0.0]) and got[1].tolist() == pytest.approx(
        [0.05, 0.0, 3.0 - 0.05]
    )
    assert token_rewards(torch.tensor([2.0, 3.0]), old, None, mask, 0.1)[0].tolist() == [0.0, 2.0, 0.0]


@given(st.integers(0, 1000))
def test_whitened_advantages_have_mean_0_and_spread_1_over_real_tokens(seed):
    torch.manual_seed(seed)
    values, mask = torch.randn(5, 6) * 3 + 2, (torch.rand(5, 6) > 0.3).float()
    mask[0, :2] = 1
    white = whiten(values, mask)
    real = white[mask.bool()]
    assert real.mean().item() == pytest.approx(0, abs=1e-5) and (white[~mask.bool()] == 0).all()
    assert real.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert whiten(values * 1e-3, mask, least=1.0)[mask.bool()].std(correction=0).item() < 0.01


def test_value_loss_takes_the_worse_of_both_and_explained_variance_its_ends():
    old, returns = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    assert clipped_value_loss(torch.tensor([0.1, 0.9]), old, returns, 0.2).tolist() == pytest.approx(
        [0.405, 0.32]
    )
    mask, returns = torch.ones(1, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.ones(1, 4), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)


def config(policy, folder, right="Stubb", **changes):
    rows = [{"prompt": f"Who is {i}?", "answer": right} for i in range(80)]
    values = dict(
        policy_checkpoint=policy,
        datasets=[write_rows(folder / "prompts.jsonl", rows)],
        reward_model="exact_match",
        batch_size=32,
        mini_batch_size=16,
        ppo_epochs=2,
        kl_coef=0.01,
        max_new_tokens=8,
        max_steps=40,
        learning_rate=1e-3,
        warmup_steps=0,
        scheduler="none",
        eval_every=40,
        eval_rows=32,
        eval_fraction=0.2,
        log_every=1,
        save_every=20,
        max_prompt_length=64,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    if changes.get("critic", True):
        values["value_learning_rate"] = 1e-2
    return PPOConfig(**{**values, **changes})


def test_it_learns_what_is_rewarded_and_its_critic_what_to_expect(policy, tmp_path):
    result = run(config(policy, tmp_path, max_steps=80, eval_every=40))
    assert result.metrics["eval_reward"] > result.metrics["before_eval_reward"] + 0.2
    lines = [line for line in RunFolder(result.folder).metrics() if "value_loss" in line]
    names = (
        "explained_variance",
        "kl",
        "entropy",
        "clip_ratio/region_mean",
        "clip_ratio/value",
        "completions/mean_length",
        "reward",
    )
    assert all(any(name in line for line in lines) for name in names)
    losses = [line["value_loss"] for line in lines]
    assert sum(losses[12:20]) < 0.6 * sum(
        losses[:8]
    )  # later all is right, and the units shrink with the returns' spread


def test_a_high_kl_weight_holds_the_policy(policy, tmp_path):
    kl = []
    for weight in (0.001, 3.0):
        (tmp_path / str(weight)).mkdir()
        result = run(
            config(
                policy,
                tmp_path / str(weight),
                kl_coef=weight,
                max_steps=60,
                eval_every=60,
                learning_rate=5e-4,
            )
        )
        kl.append([line["kl"] for line in RunFolder(result.folder).metrics() if "kl" in line])
    assert (
        kl[0][0] == pytest.approx(0, abs=1e-4)
        and abs(kl[1][-1]) < 0.3 * abs(kl[0][-1])
        and abs(kl[1][-1]) < 0.2
    )


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 50))
def test_the_value_head_keeps_its_values_when_its_units_change(seed, shift, scale):
    torch.manual_seed(seed)
    head, states = ValueHead(8).double(), torch.randn(4, 8, dtype=torch.float64)
    head.see(torch.tensor(1.0), torch.tensor(5.0))
    assert head.values(head(states)).tolist() == pytest.approx(
        [1.0] * 4
    ) and head.spread.item() == pytest.approx(2.0)
    torch.nn.init.normal_(head.map.weight)
    before = head.values(head(states))
    head.see(torch.tensor(shift), torch.tensor(shift**2 + scale**2))
    assert torch.allclose(head.values(head(states)), before, atol=1e-4, rtol=1e-4)
    assert torch.allclose(head.values(head.units(before)), before, atol=1e-4, rtol=1e-4)


def loss_by_hand(model, head, row):
    """The loss of a mini-batch from the definitions alone."""
    spread = (head["square"] - head["mean"] ** 2).clamp(min=0).sqrt().clamp(min=1e-2)
    ids = torch.cat([row["prompt_ids"], row["completion_ids"]], dim=1)
    attention = torch.cat([row["prompt_mask"], row["completion_mask"]], dim=1)
    mask, size = row["completion_mask"].double(), row["completion_ids"].size(1)
    states = model.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, -size - 1 : -1]
    log_probs = model.lm_head(states).log_softmax(-1).gather(2, row["completion_ids"][..., None]).squeeze(-1)
    ratio, advantage = (log_probs - row["old_per_token_logps"].double()).exp(), row["advantages"].double()
    policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    value = head["mean"] + spread * (states @ head["map.weight"].T + head["map.bias"]).squeeze(-1)
    old, returns = row["old_values"].double(), row["returns"].double()
    near = old + (value - old).clamp(-0.2 * spread, 0.2 * spread)
    value_loss = 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2) / spread**2
    return ((policy_loss + 0.7 * value_loss) * mask).sum() / mask.sum()


def test_a_rollout_pays_what_the_rewards_say_less_a_penalty_without_an_end(policy, tmp_path, monkeypatch):
    """With gamma and lambda 1 and no KL every token of an answer returns its score;
    old values are of the states before them.
    """
    rollouts, inner = [], PPOTrainer._generate_and_score_completions

    def spied(self, inputs):
        out = inner(self, inputs)
        if self.model.training:
            ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
            seen = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
            size = out["completion_ids"].size(1)
            with torch.no_grad():
                states = self.model.model(input_ids=ids, attention_mask=seen).last_hidden_state[
                    :, -size - 1 : -1
                ]
                values = self.value_head.values(self.value_head(states)) * out["completion_mask"]
            rollouts.append(
                (
                    {
                        name: out[name]
                        for name in ("completion_ids", "completion_mask", "returns", "old_values")
                    },
                    values,
                    self.processing_class,
                    self.eos_token_ids,
                )
            )
        return out

    monkeypatch.setattr(PPOTrainer, "_generate_and_score_completions", spied)
    run(
        config(
            policy,
            tmp_path,
            right="Ahab",
            max_steps=8,
            max_new_tokens=3,
            kl_coef=0.0,
            missing_end_penalty=5.0,
            gae_lambda=1.0,
            eval_every=8,
        )
    )
    kinds = set()
    for out, values, tokenizer, ends in rollouts:
        torch.testing.assert_close(out["old_values"], values, atol=1e-4, rtol=1e-4)
        for ids, mask, returns in zip(
            out["completion_ids"], out["completion_mask"].bool(), out["returns"], strict=True
        ):
            score = float(tokenizer.decode(ids[mask], skip_special_tokens=True).strip() == "Ahab")
            score -= 5.0 * (ids[mask][-1].item() not in ends)
            kinds.add(score)
            assert returns[mask].tolist() == pytest.approx([score] * int(mask.sum()), abs=1e-4)
    assert len(rollouts) == 2 and len(kinds) > 1 and rollouts[1][1].std() > 0.01


def test_one_update_of_the_trainer_has_loss_and_gradients_of_the_formula(policy, tmp_path, monkeypatch):
    """The loss of answers of two tokens, written down from the definitions on a copy of the model in double
    precision.
    """
    seen = []
    inner = PPOTrainer._compute_loss

    def spied(self, model, inputs):
        loss = inner(self, model, inputs)
        if (
            torch.is_grad_enabled() and len(seen) < 2
        ):  # the second mini-batch is seen after an update: its ratios are not 1
            row = {name: value.detach().clone() for name, value in inputs.items() if torch.is_tensor(value)}
            head = {
                name: value.detach().double().clone() for name, value in self.value_head.state_dict().items()
            }
            names = ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"]
            parameters = [dict(self.model.named_parameters())[name] for name in names]
            gradients = torch.autograd.grad(
                loss, [*parameters, self.value_head.map.weight], retain_graph=True
            )
            seen.append(
                (
                    loss.item(),
                    [g.clone() for g in gradients],
                    {k: v.clone() for k, v in self.model.state_dict().items()},
                    head,
                    row,
                    names,
                )
            )
        return loss

    steps, training_step = [], PPOTrainer.training_step

    def stepped(self, *args, **kwargs):
        loss = training_step(self, *args, **kwargs)
        steps.append([p.grad.clone() for p in self.value_head.parameters()])
        return loss

    monkeypatch.setattr(PPOTrainer, "_compute_loss", spied)
    monkeypatch.setattr(PPOTrainer, "training_step", stepped)
    run(
        config(
            policy,
            tmp_path,
            right="Ahab",
            max_steps=2,
            max_new_tokens=2,
            kl_coef=0.5,
            vf_coef=0.7,
            eval_every=2,
            learning_rate=3e-3,
            max_grad_norm=0.1,
        )
    )
    model, _ = load_model(policy)
    assert len(seen) == 2
    for loss, gradients, state, head, row, names in seen:
        model.float().load_state_dict(state)
        model.double().eval()
        by_hand = partial(loss_by_hand, model, head, row)
        parameters = [
            *(dict(model.named_parameters())[name] for name in names),
            head["map.weight"].requires_grad_(),
        ]
        wanted = by_hand()
        assert wanted.item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
        for right, gradient in zip(torch.autograd.grad(wanted, parameters), gradients, strict=True):
            assert right.norm() > 1e-6 and (gradient - right).norm() <= 1e-3 * right.norm()
    for (*_, head), (weight, bias) in zip((gradients for _, gradients, *_ in seen), steps, strict=True):
        assert F.cosine_similarity(head.flatten(), weight.flatten(), dim=0) > 0.9999, "of this update alone"
        assert head.norm() > 0.1 and (weight.norm() ** 2 + bias.norm() ** 2) ** 0.5 == pytest.approx(
            0.1, rel=1e-3
        ), "clipped"


@pytest.mark.parametrize("changes", [dict(critic=False), dict(adapter="lora", lora_r=8, learning_rate=1e-3)])
def test_without_a_critic_and_with_an_adapter(policy, tmp_path, changes):
    result = run(config(policy, tmp_path, max_steps=24, eval_every=24, **changes))
    assert result.metrics["eval_reward"] > result.metrics["before_eval_reward"]


def test_a_killed_run_resumes_alike_with_its_critic(policy, tmp_path):
    short = dict(max_steps=16, save_every=8, eval_every=16, save_best_only=False)
    whole = run(config(policy, tmp_path, **short))
    folder = tmp_path / "again"
    shutil.copytree(whole.folder, folder)
    for left in ("checkpoint-16", "final", "best"):
        shutil.rmtree(folder / left, ignore_errors=True)
    assert (folder / "checkpoint-8" / "value_head.safetensors").exists()
    RunFolder(folder).update(status="running")
    run(config(policy, tmp_path, **short, output_dir=str(folder)))
    names = ("reward", "value_loss", "explained_variance")
    curves = [
        [{n: line[n] for n in names if n in line} for line in RunFolder(f).metrics()]
        for f in (whole.folder, folder)
    ]
    assert curves[0] == curves[1]


def test_one_update_of_two_tokens_equals_finite_differences():
    """The clipped policy loss plus the clipped value loss of two tokens, differentiated by hand:
    nothing but the formulas.
    """
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(2, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[1, 2]])
    old = torch.tensor([[-1.2, -0.7]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.float64)
    rewards = token_rewards(torch.tensor([1.0], dtype=torch.float64), old, old - 0.1, mask, 0.05)
    values = torch.tensor([[0.2, 0.4]], dtype=torch.float64)
    advantages = gae(rewards, values, mask, 1.0, 0.95)
    returns = advantages + values

    def loss(logits, head):
        said = F.log_softmax(logits, -1).gather(2, tokens[..., None]).squeeze(-1)
        ratio = (said - old).exp()
        policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        return policy_loss + 0.1 * clipped_value_loss(head[None], values, returns, 0.2).mean()

    assert torch.autograd.gradcheck(loss, (logits, head), eps=1e-6, atol=1e-6)
    hand = [1.0 - 0.05 * 0.1 * 1 + 0.0]  # the last token's reward: the score less its penalty
    assert rewards[0, 1].item() == pytest.approx(hand[0]) and rewards[0, 0].item() == pytest.approx(-0.005)
    assert advantages[0, 1].item() == pytest.approx(0.995 - 0.4)
    assert advantages[0, 0].item() == pytest.approx(-0.005 + 0.4 - 0.2 + 0.95 * 0.595)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=10, mini_batch_size=4), "does not divide"),
        (dict(batch_size=9, mini_batch_size=3), "is odd"),
        (dict(critic=False, vf_coef=0.5), "`vf_coef` applies only when `critic` is True"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(LabError, match=message):
        validate(PPOConfig, {"kind": "ppo", **changes})

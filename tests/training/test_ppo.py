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
from transformers import GenerationMixin

from llmlab.config import PPOConfig
from llmlab.config.base import validate
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.models.value_head import ValueHead
from llmlab.runs.folder import RunFolder
from llmlab.training.advantages import (
    clipped_value_loss,
    explained_variance,
    gae,
    token_rewards,
    whiten,
)
from llmlab.training.engine.run import run
from llmlab.training.order import RolloutOrder
from llmlab.training.trainers.ppo import PPOTrainer
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
    assert whiten(values * 1e-3, mask, min_std=1.0)[mask.bool()].std(correction=0).item() < 0.01


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    head.update_stats(torch.tensor(1.0), torch.tensor(5.0))
    assert head.denormalize(head(states)).tolist() == pytest.approx(
        [1.0] * 4
    ) and head.std.item() == pytest.approx(2.0)
    torch.nn.init.normal_(head.map.weight)
    before = head.denormalize(head(states))
    head.update_stats(torch.tensor(shift), torch.tensor(shift**2 + scale**2))
    assert torch.allclose(head.denormalize(head(states)), before, atol=1e-4, rtol=1e-4)
    assert torch.allclose(head.denormalize(head.normalize(before)), before, atol=1e-4, rtol=1e-4)


def loss_by_hand(model, head, row):
    """The loss of a mini-batch from the definitions alone."""
    spread = (head["square"] - head["mean"] ** 2).clamp(min=0).sqrt().clamp(min=1e-2)
    ids, attention, size = row["input_ids"], row["attention_mask"], row["advantages"].size(1)
    mask, answers = attention[:, -size:].double(), ids[:, -size:]
    states = model.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, -size - 1 : -1]
    log_probs = model.lm_head(states).log_softmax(-1).gather(2, answers[..., None]).squeeze(-1)
    ratio, advantage = (log_probs - row["old_log_probs"].double()).exp(), row["advantages"].double()
    policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    value = head["mean"] + spread * (states @ head["map.weight"].T + head["map.bias"]).squeeze(-1)
    old, returns = row["old_values"].double(), row["returns"].double()
    near = old + (value - old).clamp(-0.2 * spread, 0.2 * spread)
    value_loss = 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2) / spread**2
    return ((policy_loss + 0.7 * value_loss) * mask).sum() / mask.sum()


@pytest.mark.slow
def test_a_rollout_pays_what_the_rewards_say_less_a_penalty_without_an_end(policy, tmp_path, monkeypatch):
    """With gamma and lambda 1 and no KL every token of an answer returns its score;
    old values are of the states before them.
    """
    rollouts, inner = [], PPOTrainer._roll_out

    def spied(self, rows):
        out = inner(self, rows)
        ids, size = out["input_ids"], out["returns"].size(1)
        mask = out["attention_mask"][:, -size:]
        with torch.no_grad():
            states = self.policy.model(input_ids=ids, attention_mask=out["attention_mask"])
            before = states.last_hidden_state[:, -size - 1 : -1]
            values = self.value_head.denormalize(self.value_head(before)) * mask
        answers = {"ids": ids[:, -size:], "mask": mask.bool(), "prompts": [row["prompt"] for row in rows]}
        rollouts.append(({**out, **answers}, values, self.processing_class, self.ends))
        return out

    monkeypatch.setattr(PPOTrainer, "_roll_out", spied)
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
        for ids, mask, returns in zip(out["ids"], out["mask"], out["returns"], strict=True):
            score = float(tokenizer.decode(ids[mask], skip_special_tokens=True).strip() == "Ahab")
            score -= 5.0 * (ids[mask][-1].item() not in ends)
            kinds.add(score)
            assert returns[mask].tolist() == pytest.approx([score] * int(mask.sum()), abs=1e-4)
    assert len(rollouts) == 2 and len(kinds) > 1 and rollouts[1][1].std() > 0.01
    prompts = [turn["content"] for out, *_ in rollouts for (turn,) in out["prompts"]]
    assert len(prompts) == len(set(prompts)) == 64  # each is answered once


@pytest.mark.slow
def test_one_update_of_the_trainer_has_loss_and_gradients_of_the_formula(policy, tmp_path, monkeypatch):
    """The loss of answers of two tokens, written down from the definitions on a copy of the model in double
    precision.
    """
    seen = []
    inner = PPOTrainer.compute_loss

    def spied(self, model, inputs, *args, **kwargs):
        loss = inner(self, model, inputs, *args, **kwargs)
        if (
            torch.is_grad_enabled() and len(seen) < 2
        ):  # the second mini-batch is seen after an update: its ratios are not 1
            row = {name: value.detach().clone() for name, value in inputs.items() if torch.is_tensor(value)}
            head = {
                name: value.detach().double().clone() for name, value in self.value_head.state_dict().items()
            }
            names = ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"]
            parameters = [dict(self.policy.named_parameters())[name] for name in names]
            gradients = torch.autograd.grad(
                loss, [*parameters, self.value_head.map.weight], retain_graph=True
            )
            seen.append(
                (
                    loss.item(),
                    [g.clone() for g in gradients],
                    {k: v.clone() for k, v in self.policy.state_dict().items()},
                    head,
                    row,
                    names,
                )
            )
        return loss

    steps, step = [], torch.optim.AdamW.step

    def stepped(self, *args, **kwargs):
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        steps.append([p.grad.clone() for p in weights])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PPOTrainer, "compute_loss", spied)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
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
    for (*_, head), clipped in zip((gradients for _, gradients, *_ in seen), steps, strict=True):
        weight, _bias = clipped[-2:]
        assert F.cosine_similarity(head.flatten(), weight.flatten(), dim=0) > 0.9999, "of this update alone"
        together = sum(gradient.norm() ** 2 for gradient in clipped) ** 0.5  # of policy and critic
        assert head.norm() > 0.1 and together.item() == pytest.approx(0.1, rel=1e-3), "clipped"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [dict(critic=False), dict(adapter="lora", lora_r=8, learning_rate=1e-3)])
def test_without_a_critic_and_with_an_adapter(policy, tmp_path, changes):
    result = run(config(policy, tmp_path, max_steps=24, eval_every=24, **changes))
    assert result.metrics["eval_reward"] > result.metrics["before_eval_reward"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_options_of_answers_reach_the_policy_and_weights_the_reward(policy, tmp_path, monkeypatch):
    """None of these values is a default of this package or of transformers."""
    seen, generate = [], GenerationMixin.generate

    def spied(self, input_ids, generation_config, **kwargs):
        seen.append((len(input_ids), generation_config))
        return generate(self, input_ids=input_ids, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", spied)
    result = run(
        config(
            policy,
            tmp_path,
            right="Ahab",
            reward_model=[
                {"name": "exact_match", "weight": 0.3},
                {"name": "length", "weight": 2.0, "setting": "6"},
            ],
            **dict(temperature=0.7, top_k=13, top_p=0.83, max_new_tokens=3),
            **dict(batch_size=9, mini_batch_size=3, ppo_epochs=2, max_steps=7),
            **dict(eval_fraction=0.0, save_every=7, log_every=1),
        )
    )
    assert [rows for rows, _ in seen] == [9, 9]  # at updates 0 and 6: 3 mini-batches, 2 epochs
    for _, options in seen:
        assert (options.temperature, options.top_k, options.top_p) == (0.7, 13, 0.83)
        assert options.max_new_tokens == 3 and options.do_sample
    lines = [line for line in RunFolder(result.folder).metrics() if "reward" in line]
    assert [line["step"] for line in lines] == [1, 7]
    for line in lines:
        parts = line["rewards/exact_match/mean"], line["rewards/length/mean"]
        assert line["reward"] == pytest.approx(0.3 * parts[0] + 2.0 * parts[1]) and min(parts) > 0


def test_every_prompt_is_read_once_in_an_epoch_and_again_for_its_updates():
    order = RolloutOrder(rows=10, batch=4, updates=3, seed=5)
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        indices = list(order)
        assert len(indices) == len(order) == 3 * 4 * 3
        batches = [indices[start : start + 4] for start in range(0, len(indices), 4)]
        assert all(batches[3 * k] == batches[3 * k + 1] == batches[3 * k + 2] for k in range(3))
        read = [row for batch in batches[::3] for row in batch]
        assert sorted(read[:10]) == list(range(10)) and read[10:] == read[:2]
        epochs.append(read)
    assert epochs[0] == epochs[2] != epochs[1]
    few = list(RolloutOrder(rows=3, batch=8, updates=1, seed=5))
    assert len(few) == 8 and set(few) == {0, 1, 2}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=10, mini_batch_size=4), "does not divide"),
        (dict(critic=False, vf_coef=0.5), "`vf_coef` applies only when `critic` is True"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(LabError, match=message):
        validate(PPOConfig, {"kind": "ppo", **changes})

"""Sophia's curvature against finite differences;
the learning rate of every update against the schedule's own formula.
"""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, PPOConfig, RewardConfig
from llmlab.config.base import validate
from llmlab.data.packing import PackedCollator
from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.training import optimizers
from llmlab.training.callbacks import stop as callbacks
from llmlab.training.engine.run import run
from llmlab.training.optimizers import SOPHIA_GAMMA, Muon, build_optimizer, gauss_newton_diagonal
from tests.conftest import write_rows

pytestmark = pytest.mark.slow  # trains


def decoder():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=13,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=16,
            n_embd=8,
            n_layer=1,
            n_head=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )


def encoder_decoder():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=13,
            d_model=8,
            d_kv=4,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            dropout_rate=0,
            decoder_start_token_id=0,
        )
    )


PACKED = PackedCollator(0)(
    [  # rows of two documents, of prompts that are not learned, and with padding behind
        {"input_ids": [3, 4, 5, 6, 7, 8, 9, 10], "labels": [3, 4, 5, 6, 7, 8, 9, 10], "seq_lengths": [5, 3]},
        {"input_ids": [3, 1, 5, 12, 7], "labels": [-100, -100, 5, 12, 7], "seq_lengths": [5]},
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
        {"input_ids": [1, 2], "labels": [1, 2]},
    ]
)
PAIRS = {
    "input_ids": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [1, 2, 9, 9, 9], [6, 7, 10, 11, 0]]),
    "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]),
    "completion_mask": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]),
}
APART = {
    "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0], [1] * 4, [1] * 4]),
    "labels": torch.tensor([[7, 8, 9], [10, -100, -100], [1, 1, 1], [1, 1, 1]]),
}


def logits_that_are_learned(model, inputs):
    """The logits of every token of the first half of the rows that the loss is computed of,
    one document at a time.
    """
    found = []
    for row in range(len(inputs["input_ids"]) // 2):
        part = {name: value[row : row + 1] for name, value in inputs.items()}
        if model.config.is_encoder_decoder:
            found.append(model(**part).logits[0][part["labels"][0] != -100])
            continue
        ids, marks = part["input_ids"][0], part.get("labels", part.get("completion_mask"))[0]
        wanted = marks != -100 if "labels" in part else marks == 1
        begins = (
            [i for i, place in enumerate(part["position_ids"][0].tolist()) if place == 0]
            if "labels" in part
            else [0]
        )
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            places = [place for place in range(begin + 1, end) if wanted[place]]
            if places:
                out = model(input_ids=ids[None, begin : max(places)]).logits[0]
                found.append(out[[place - 1 - begin for place in places]])
    return torch.cat(found)


@pytest.mark.parametrize(
    "build, inputs, learned, draws",
    [
        (decoder, PACKED, 4 + 2 + 3, 400),
        (decoder, PAIRS, 3 + 1, 400),
        (encoder_decoder, APART, 3 + 1, 200),
    ],
)
def test_sophias_curvature_is_an_unbiased_estimate_of_the_gauss_newton_diagonal(
    build, inputs, learned, draws
):
    """For a softmax the diagonal is the mean over tokens of the variance of the logits' derivatives;
    those by differences.
    """
    model = build().double().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    drawn = [torch.zeros_like(p) for _, p in parameters]
    for _ in range(draws):
        for total, part in zip(drawn, gauss_newton_diagonal(model, optimizer, inputs), strict=True):
            total += part / draws
    step, pairs = 1e-5, []
    with torch.no_grad():
        chances = logits_that_are_learned(model, inputs).softmax(-1)
        assert len(chances) == learned
        for (_, parameter), mean in zip(parameters, drawn, strict=True):
            for place in torch.randperm(parameter.numel())[:3].tolist():
                ends, kept = [], parameter.view(-1)[place].item()
                for sign in (1, -1):
                    parameter.view(-1)[place] = kept + sign * step
                    ends.append(logits_that_are_learned(model, inputs))
                parameter.view(-1)[place] = kept
                slope = (ends[0] - ends[1]) / (2 * step)
                variance = (chances * slope**2).sum(-1) - (chances * slope).sum(-1) ** 2
                pairs.append((mean.view(-1)[place].item() / SOPHIA_GAMMA, variance.mean().item()))
    ratios = [found / wanted for found, wanted in pairs if wanted > 1e-9]
    assert len(ratios) > 20 and sum(ratios) / len(ratios) == pytest.approx(1, abs=0.06)
    assert ratios == pytest.approx([1] * len(ratios), abs=0.5)
    assert all(found < 1e-8 for found, wanted in pairs if wanted <= 1e-9), (
        "what no logit depends on has no curvature"
    )


def test_an_estimate_comes_every_ten_updates_and_only_the_first_micro_batch_pays(
    base_config, tmp_path, monkeypatch
):
    estimates, seen = [], []
    inner, step = optimizers.gauss_newton_diagonal, optimizers.SophiaG.step
    monkeypatch.setattr(
        "llmlab.training.trainers.base.gauss_newton_diagonal",
        lambda *a: estimates.append(inner(*a)) or estimates[-1],
    )

    def stepped(self, closure=None):
        seen.append(self.hessian is not None)
        return step(self, closure)

    monkeypatch.setattr(optimizers.SophiaG, "step", stepped)
    run(
        base_config(
            tmp_path / "run",
            optimizer="sophia",
            max_steps=22,
            gradient_accumulation_steps=2,
            batch_size=4,
            eval_every=22,
        )
    )
    assert (
        [number for number, known in enumerate(seen, 1) if known] == [1, 11, 21]
        and len(estimates) == 3
        and len(seen) == 22
    )
    assert all(sum(part.sum().item() for part in estimate) > 0 for estimate in estimates)


@pytest.mark.parametrize("kind", [RewardConfig, GRPOConfig, PPOConfig, DualHeadConfig])
def test_sophia_is_refused_where_its_curvature_is_of_another_loss(kind):
    with pytest.raises(LabError, match="`optimizer` 'sophia' is not one of adamw, adafactor, lion, muon"):
        validate(kind, {"kind": kind.KIND, "optimizer": "sophia"})
    assert "sophia" not in kind.options()["optimizer"].choices


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_sophia_learns_a_preference(base_run, tmp_path, adapter):
    data = write_rows(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(60)],
    )
    result = run(
        DPOConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[data],
            max_steps=12,
            learning_rate=1e-3,
            warmup_steps=0,
            batch_size=8,
            mini_batch_size=4,
            max_length=64,
            max_prompt_length=48,
            eval_every=12,
            eval_fraction=0.2,
            adapter=adapter,
            report_to=[],
            optimizer="sophia",
            reference="live",
            scheduler="none",
            output_dir=str(tmp_path / "run"),
        )
    )
    assert result.metrics["eval_loss"] < result.metrics["before_eval_loss"] - 0.05


# Schedules


def rate(schedule, peak, warmup, last, update):
    """The learning rate of an update (from 0) as the options' help has it: a straight rise,
    then the schedule's fall.
    """
    if update < warmup:
        return peak * update / warmup
    share = (update - warmup) / max(1, last - warmup)
    return {
        "none": peak,
        "cosine": peak * (1 + math.cos(math.pi * share)) / 2,
        "linear": peak * (1 - share),
        "polynomial": 1e-7 + (peak - 1e-7) * (1 - share),
    }[schedule]


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of all parameter groups at every update."""
    seen, step = [], torch.optim.AdamW.step

    def stepped(self, closure=None):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    return seen


def stop_before_update(monkeypatch, rates, updates):
    """Lets a signal arrive before a forward pass once so many updates are done; None takes it back."""

    def look(self, module, inputs):
        if updates is not None and len(rates) >= updates:
            self.received = 15
            raise callbacks.Stopped

    monkeypatch.setattr(callbacks.StopOnSignal, "_look", look)


SHORT = dict(
    max_steps=13,
    eval_every=100,
    save_every=100,
    log_every=1,
    batch_size=2,
    gradient_accumulation_steps=2,
    eval_fraction=0.0,
    save_best_only=False,
    learning_rate=2e-3,
)


@pytest.mark.parametrize(
    "schedule, warmup",
    [
        ("none", 5),
        ("cosine", 0),
        ("cosine", 5),
        ("linear", 1),
        ("polynomial", 0),
        ("polynomial", 13),
    ],
)
def test_every_update_has_the_rate_of_the_formula_stopped_in_the_middle_too(
    base_config, tmp_path, monkeypatch, rates, schedule, warmup
):
    made = base_config(tmp_path / "run", **SHORT, scheduler=schedule, warmup_steps=warmup)
    for stop in (7, None):
        stop_before_update(monkeypatch, rates, stop)
        result = run(made)
    wanted = [rate(schedule, 2e-3, warmup, 13, update) for update in range(13)]
    assert [one for one, _ in rates] == pytest.approx(wanted, rel=1e-9, abs=1e-15) and len(
        {len(set(all_)) for all_ in rates}
    ) == 1
    logged = [line["learning_rate"] for line in RunFolder(result.folder).metrics() if "learning_rate" in line]
    assert logged == pytest.approx(wanted, rel=1e-9, abs=1e-15), (
        "what is logged with a step is what it was done with"
    )


@pytest.mark.parametrize(
    "change",
    [
        dict(learning_rate=7e-4),
        dict(scheduler="linear"),
        dict(warmup_steps=8),
        dict(max_steps=17),
        dict(learning_rate=1e-3, scheduler="none", warmup_steps=9, max_steps=15),
    ],
)
def test_a_schedule_changed_on_purpose_holds_from_where_the_run_goes_on(
    base_config, tmp_path, monkeypatch, rates, change
):
    first = dict(SHORT, scheduler="cosine", warmup_steps=2)
    then = {**first, **change}
    stop_before_update(monkeypatch, rates, 6)
    run(base_config(tmp_path / "run", **first))
    stop_before_update(monkeypatch, rates, None)
    run(base_config(tmp_path / "run", **then))
    wanted = [rate("cosine", 2e-3, 2, 13, update) for update in range(6)]
    wanted += [
        rate(then["scheduler"], then["learning_rate"], then["warmup_steps"], then["max_steps"], update)
        for update in range(6, then["max_steps"])
    ]
    assert [one for one, _ in rates] == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_the_critics_own_rate_follows_the_same_schedule(base_run, tmp_path, monkeypatch, rates):
    data = write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": f"Who is {i}?", "answer": "Ahab"} for i in range(40)]
    )
    made = PPOConfig(
        policy_checkpoint=str(base_run.folder),
        datasets=[data],
        reward_model="exact_match",
        batch_size=4,
        mini_batch_size=2,
        ppo_epochs=2,
        max_new_tokens=4,
        max_steps=9,
        learning_rate=1e-4,
        value_learning_rate=3e-3,
        warmup_steps=2,
        eval_every=9,
        eval_fraction=0.1,
        eval_rows=8,
        max_prompt_length=48,
        scheduler="linear",
        output_dir=str(tmp_path / "run"),
        report_to=[],
    )
    for stop in (5, None):
        stop_before_update(monkeypatch, rates, stop)
        run(made)
    assert len(rates) == 9
    for update, (policy, *_, critic) in enumerate(rates):
        factor = rate("linear", 1, 2, 9, update)
        assert (policy, critic) == pytest.approx((1e-4 * factor, 3e-3 * factor), rel=1e-9, abs=1e-15)


# Updates by hand


class Two(torch.nn.Module):
    """A matrix, on which weight decay falls, and a bias, on which it does not."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)


def adamw(p, grads, decay, c):
    mean, square = 0.0, 0.0
    for step, g in enumerate(grads, 1):
        mean = c.adam_beta1 * mean + (1 - c.adam_beta1) * g
        square = c.adam_beta2 * square + (1 - c.adam_beta2) * g**2
        p = p * (1 - c.learning_rate * decay)
        root = (square / (1 - c.adam_beta2**step)).sqrt()
        p = p - c.learning_rate * (mean / (1 - c.adam_beta1**step)) / (root + c.adam_eps)
    return p


def lion(p, grads, decay, c):
    mean = torch.zeros_like(p)
    for g in grads:
        p = (
            p * (1 - c.learning_rate * decay)
            - c.learning_rate * (c.lion_beta1 * mean + (1 - c.lion_beta1) * g).sign()
        )
        mean = c.lion_beta2 * mean + (1 - c.lion_beta2) * g
    return p


def sophia(p, grads, decay, c):
    """Liu et al. 2023, algorithm 3: the curvature, here 3 everywhere,
    is seen with the first gradient alone.
    """
    mean, curvature = 0.0, (1 - 0.99) * 3.0
    for g in grads:
        mean = 0.96 * mean + (1 - 0.96) * g
        p = p * (1 - c.learning_rate * decay) - c.learning_rate * (mean / curvature).clamp(-1, 1)
    return p


@pytest.mark.parametrize(
    "by_hand, options",
    [
        (adamw, dict(adam_beta1=0.7, adam_beta2=0.6, adam_eps=0.3)),
        (lion, dict(lion_beta1=0.6, lion_beta2=0.2)),
        (sophia, {}),
    ],
    ids=["adamw", "lion", "sophia"],
)
def test_updates_are_the_published_ones_with_the_options_of_the_config(
    base_config, tmp_path, by_hand, options
):
    made = base_config(tmp_path, optimizer=by_hand.__name__, learning_rate=0.1, weight_decay=0.4, **options)
    model = Two()
    parameters = list(model.parameters())
    start, grads = (
        [p.detach().clone() for p in parameters],
        [[torch.randn_like(p) for p in parameters] for _ in range(3)],
    )
    optimizer = build_optimizer(model, made)
    for number, given in enumerate(grads):
        for parameter, grad in zip(parameters, given, strict=True):
            parameter.grad = grad.clone()
        if by_hand is sophia and number == 0:
            optimizer.hessian = [
                torch.full_like(p, 3.0) for group in optimizer.param_groups for p in group["params"]
            ]
        optimizer.step()
    for place, (before, after, decay) in enumerate(zip(start, parameters, (0.4, 0.0), strict=True)):
        wanted = by_hand(before, [given[place] for given in grads], decay, made)
        torch.testing.assert_close(after.detach(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_the_other_optimizers_have_the_options_of_the_config(base_config, tmp_path, name):
    own = (
        dict(muon_momentum=0.8, muon_nesterov=False, adam_beta1=0.7, adam_beta2=0.6, adam_eps=0.3)
        if name == "muon"
        else {}
    )
    model = torch.nn.ModuleDict({"body": Two(), "lm_head": torch.nn.Linear(2, 5, bias=False)})
    optimizer = build_optimizer(
        model, base_config(tmp_path, optimizer=name, learning_rate=0.1, weight_decay=0.4, **own)
    )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    matrix, bias, head = (groups[id(p)] for p in model.parameters())
    assert (matrix["weight_decay"], bias["weight_decay"], head["weight_decay"]) == (0.4, 0.0, 0.4)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    if name == "muon":
        assert (matrix["use_muon"], bias["use_muon"], head["use_muon"]) == (True, False, False)
        assert (matrix["momentum"], matrix["nesterov"]) == (0.8, False)
        assert all(tuple(group["betas"]) == (0.7, 0.6) and group["eps"] == 0.3 for group in (bias, head))


def test_gradients_are_clipped_at_the_norm_of_the_config(base_config, tmp_path, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def stepped(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    run(base_config(tmp_path / "run", max_steps=3, max_grad_norm=0.25, eval_every=3))
    assert norms == pytest.approx([0.25] * 3, rel=1e-3)


@pytest.mark.parametrize("shapes", [[(24, 10)], [(10, 24), (24, 10), (16, 16)]])
def test_muons_update_is_the_published_one_in_double_precision(shapes):
    """Jordan et al. 2024: momentum, Nesterov, five Newton-Schulz iterations; 0.2 sqrt(longer side) of Liu et
    al. 2025.

    Also a contract: the library asks `_orthogonalize` for the update, one matrix or several at a time.
    """
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = Muon(
        [
            {
                "params": weights,
                "lr": 0.01,
                "momentum": 0.9,
                "nesterov": True,
                "use_muon": True,
                "weight_decay": 0.0,
            }
        ],
        use_adjusted_lr=True,
    )
    buffers = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    for _ in range(3):
        before = [weight.detach().double() for weight in weights]
        gradients = [torch.randn(shape) for shape in shapes]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        for weight, old, gradient, buffer in zip(weights, before, gradients, buffers, strict=True):
            buffer.lerp_(gradient.double(), 0.1)
            x = gradient.double().lerp(buffer, 0.9)
            x = x / x.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            expected = old - 0.01 * 0.2 * max(weight.shape) ** 0.5 * x
            torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=2e-6)

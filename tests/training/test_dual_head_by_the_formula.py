"""The dual head's training loss and its gradients, beside the formulas written down in double precision."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from llmlab.data.dual_head import DualHeadCollator
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.training.trainers.dual_head import DualHeadTrainer

LAMBDA_R, LAMBDA_G, BETA_R = 0.7, 0.2, 0.3


def numbers(count, shift):
    return [(7 * place + 3 * shift) % 90 + 5 for place in range(count)]


def rows():
    """Pairs of all lengths, prompts of which nothing is learned, answers that are learned in part,
    and answers alone.
    """
    made = []
    for index, (prompt, chosen, rejected) in enumerate(
        [(4, 6, 3), (9, 2, 5), (3, 8, 0), (5, 1, 1), (7, 5, 9), (2, 7, 0)]
    ):
        ids = numbers(chosen, index + 1)
        labels = [-100 if index == 4 and place % 2 else token for place, token in enumerate(ids)]
        made.append(
            {
                "prompt_ids": numbers(prompt, index),
                "chosen_ids": ids,
                "chosen_labels": labels,
                "rejected_ids": numbers(rejected, 50 + index),
            }
        )
    return made


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    backbone = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )
    about = LabDualHeadConfig(
        backbone.config,
        backbone="",
        gating_num_heads=2,
        gating_size=8,
        gating_layer_norm=True,
        gating_dropout=0.0,
        rm_bias=True,
        rm_dropout=0.0,
    )
    dual = LabDualHeadForCausalLM(about, backbone).float_heads()
    with torch.no_grad():  # heads that have learned: all parts of the loss are at work
        for parameter in dual.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return dual


def trained(model, folder, micro, share):
    """Returns loss and gradients of an update by the trainer, cut up into micro-batches."""
    given = rows()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=len(given) // micro,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        max_grad_norm=1e9,
    )
    collator = DualHeadCollator(0, share=share)
    trainer = DualHeadTrainer(
        model=model,
        args=arguments,
        train_dataset=given,
        data_collator=collator,
        lambda_r=LAMBDA_R,
        lambda_g=LAMBDA_G,
        beta_r=BETA_R,
    )
    parts = [collator(given[start : start + micro]) for start in range(0, len(given), micro)]
    samples, count = trainer.get_batch_samples(iter(parts), len(parts), torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(parts)
    model.train().zero_grad()
    total = sum(trainer.training_step(model, sample, count).item() for sample in samples)
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def by_hand(model):
    """Returns the loss and its gradients, a row at a time and in double precision;
    of the model nothing but weights is used.
    """
    weights = {
        name: p.detach().double().requires_grad_() for name, p in model.named_parameters() if p.requires_grad
    }
    lm = lambda h: h @ weights["lm_head.weight"].T + weights.get("lm_head.bias", 0)  # noqa: E731
    rm = lambda h: h @ weights["rm_head.weight"].T + weights["rm_head.bias"]  # noqa: E731

    def linear(x, name):
        return x @ weights[f"gate.{name}.weight"].T + weights.get(f"gate.{name}.bias", 0)

    def states(ids):
        with torch.no_grad():
            return model.backbone.model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()

    def gate(hidden):
        mean = hidden.mean(-1, keepdim=True)
        normed = (hidden - mean) / (((hidden - mean) ** 2).mean(-1, keepdim=True) + 1e-5).sqrt()
        normed = normed * weights["gate.norm.weight"] + weights["gate.norm.bias"]
        length, width, heads = len(hidden), hidden.shape[1], 2
        q, k, v = (
            linear(normed, f"attention.{part}_proj").view(length, heads, -1).transpose(0, 1) for part in "qkv"
        )
        scores = (q @ k.transpose(1, 2)) / math.sqrt(width // heads)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        attended = linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width), "attention.o_proj")
        x = linear(attended, "narrow")
        return torch.sigmoid(linear(0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "score")).squeeze(-1)

    said, entropies, preferences = [], [], []
    for row in rows():
        start, ids = len(row["prompt_ids"]), torch.tensor(row["chosen_ids"])
        hidden = states(row["prompt_ids"] + row["chosen_ids"])
        alpha = gate(hidden)
        before = slice(start - 1, start - 1 + len(ids))
        h, a = hidden[before], alpha[before, None]
        fused = ((1 - a) * lm(h) + a * rm(h)).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        learned = torch.tensor(row["chosen_labels"]) >= 0
        a = a.squeeze(1)[learned]
        said.append(fused[learned])
        entropies.append(-(a * a.log() + (1 - a) * (1 - a).log()))
        if not row["rejected_ids"]:
            continue
        other = torch.tensor(row["rejected_ids"])
        hidden = states(row["prompt_ids"] + row["rejected_ids"])[start - 1 : start - 1 + len(other)]
        worse = rm(hidden).log_softmax(-1).gather(1, other[:, None]).sum()
        better = rm(h).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)[learned].sum()
        preferences.append(torch.log1p(torch.exp(-BETA_R * (better - worse))))
    loss = (
        -torch.cat(said).mean()
        + LAMBDA_R * torch.stack(preferences).mean()
        - LAMBDA_G * torch.cat(entropies).mean()
    )
    names = list(weights)
    return loss.item(), dict(
        zip(names, torch.autograd.grad(loss, [weights[name] for name in names]), strict=True)
    )


@pytest.mark.parametrize("micro, share", [(6, False), (2, False), (1, False), (6, True), (3, True)])
def test_loss_and_gradients_are_those_of_the_formula(model, tmp_path, micro, share):
    wanted, gradients = by_hand(model)
    total, got = trained(model, tmp_path, micro, share)
    assert total == pytest.approx(wanted, abs=2e-5)
    assert set(got) == set(gradients)
    for name, gradient in gradients.items():
        assert (got[name].double() - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name

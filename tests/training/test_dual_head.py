"""The dual head learns held-out pairs, its loss is the formula however an update is cut up,
and its backbone never moves.
"""

import copy
import random

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, CohereConfig

from llmlab.chat.session import ChatSession
from llmlab.chat.terminal import answer_at_terminal, answer_side_by_side
from llmlab.config import DualHeadConfig, SFTConfig, SourceConfig
from llmlab.config.chat import ChatSettings
from llmlab.errors import LabError
from llmlab.evaluation.pairs import dual_head_figures
from llmlab.evaluation.results import win_rates
from llmlab.evaluation.sources import measure
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.load import is_backbone_of, load_model
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.reporter import SILENT
from llmlab.training.engine.run import run
from llmlab.training.methods.dual_head import prepare, refuse_other_logits, shares_prompts
from llmlab.training.trainers.dual_head import entropy
from tests.conftest import write_rows


def pairs(count, seed=0):
    """The better answer names who was asked for, the worse one always the same other."""
    rng, names, rows = random.Random(seed), ["Ahab", "Starbuck", "Queequeg", "Stubb", "Ishmael"], []
    for number in range(count):
        place = rng.randrange(5)
        who, other = names[place], names[place - 1]
        rows.append(
            {
                "prompt": f"{number}: where is {who}?",
                "chosen": f"{who} is here.",
                "rejected": f"{other} is here.",
            }
        )
    return rows


@pytest.fixture(scope="module")
def policy(base_run, tmp_path_factory):
    """A model that answers with one of the two names, as often the wrong one."""
    folder = tmp_path_factory.mktemp("policy")
    rows = [
        {"prompt": row["prompt"], "completion": row[("chosen", "rejected")[i % 2]]}
        for i, row in enumerate(pairs(600, seed=9))
    ]
    return run(
        SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[write_rows(folder / "rows.jsonl", rows)],
            max_steps=150,
            learning_rate=5e-3,
            batch_size=8,
            gradient_accumulation_steps=1,
            max_length=128,
            eval_every=150,
            output_dir=str(folder / "run"),
            report_to=[],
        )
    )


@pytest.fixture
def config(policy, tmp_path):
    def make(**changes):
        values = dict(
            backbone=str(policy.folder),
            datasets=[write_rows(tmp_path / "pairs.jsonl", pairs(400))],
            max_length=64,
            epochs=8,
            batch_size=16,
            gradient_accumulation_steps=1,
            learning_rate=5e-3,
            warmup_steps=5,
            eval_every=100,
            eval_fraction=0.15,
            report_to=[],
            output_dir=str(tmp_path / "run"),
        )
        return DualHeadConfig(**{**values, **changes})

    return make


@pytest.mark.slow
def test_it_learns_held_out_pairs_on_a_backbone_that_stays(policy, config, tmp_path):
    before = load_model(str(policy.folder))[0].state_dict()
    result = run(config())
    record = RunFolder(result.folder).record
    assert record["planned_steps"] == 176  # 340 rows, 16 a step: 22 steps an epoch, 8 epochs
    metrics = result.metrics
    assert metrics["before_eval_reward_accuracy"] < 0.75 < 0.9 < metrics["eval_reward_accuracy"]
    assert metrics["eval_perplexity"] < 1.05 * metrics["before_eval_perplexity"]
    model, tokenizer = load_model(str(result.folder))
    assert isinstance(model, LabDualHeadForCausalLM)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    fresh = pairs(60, seed=5)
    rows = [(row["prompt"], row["chosen"], row["rejected"]) for row in fresh]
    figures = dual_head_figures(model, tokenizer, rows, batch_size=16)
    assert (
        figures["preference_accuracy"] > 0.85
        and figures["perplexity"] < 1.05 * figures["backbone_perplexity"]
    )
    assert 0 < figures["alpha"] < 1 and 0 < figures["gate_entropy"] <= 0.694
    path = write_rows(tmp_path / "fresh.jsonl", fresh)
    assert measure(model, tokenizer, SourceConfig(name=path)).figures == pytest.approx(figures, rel=1e-4)

    # the same answers, judged: the fused model against its backbone, which is in memory already
    assert is_backbone_of(str(policy.folder), model)

    def exact(prompts, answers, right):
        return [float(answer == wanted) for answer, wanted in zip(answers, right, strict=True)]

    def answered():
        return measure(model, tokenizer, SourceConfig(name=path), reward=exact, max_new_tokens=16)

    fused = answered()
    with model.backbone_alone():
        alone = answered()
    won = win_rates(fused.answers, alone.answers, seed=0)
    assert fused.figures["reward"] > won["reward_of_the_other"]["value"] == alone.figures["reward"]
    assert won["win_rate"]["value"] > 0.1 and model.alignment == 1.0

    # and in the chat
    console = Console(record=True, width=80, force_terminal=True, color_system="truecolor")
    session = ChatSession(
        model, tokenizer, ChatSettings(temperature=0, max_new_tokens=16, show_alpha=True), name="dual"
    )
    said = rows[0][0]
    pieces = []
    session.reply(said, pieces.append)
    session.messages.clear()
    assert pieces and all(0 < piece.alpha < 1 for piece in pieces)
    answer_at_terminal(session, said, console)
    session.messages.clear()
    session.command("/set alignment 0", console)
    plain = ChatSession(model, tokenizer, session.settings, name="backbone", plain=True)
    assert session.reply(said, pieces.append) == plain.reply(said, pieces.append) and pieces[-1].alpha is None
    with pytest.raises(LabError, match="backbone has no alignment to turn"):
        plain.command("/set alignment 2", console)
    answer_side_by_side([session, plain], said, console, [session.name, plain.name])
    shown = console.export_text()
    assert "alpha" in shown and "mean 0." in shown and "dual" in shown and "backbone" in shown


def trainer_of(config, tmp_path, **changes):
    job = prepare(config, "cpu", "fp32", SILENT)
    given = dict(
        output_dir=str(tmp_path),
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        max_steps=1,
        per_device_train_batch_size=config.batch_size,
        **changes,
    )
    return job.trainer(
        model=job.model,
        args=job.arguments(**given),
        train_dataset=job.data.train,
        processing_class=job.tokenizer,
    )


@pytest.mark.slow
def test_the_loss_is_the_formula(config, tmp_path):
    made = config(
        lambda_r=0.7, lambda_g=0.2, beta_r=0.3, rm_dropout=0.0, gating_dropout=0.0, share_prompts=False
    )
    trainer = trainer_of(made, tmp_path)
    with torch.no_grad():
        trainer.model.rm_head.weight.add_(0.05 * torch.randn_like(trainer.model.rm_head.weight))
    row = trainer.train_dataset[3]
    loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator([row]))
    model = trainer.model
    logs = {}
    for name in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([row["prompt_ids"] + row[name]])
        said = slice(len(row["prompt_ids"]) - 1, ids.shape[1] - 1)
        out = model(ids)
        targets = torch.tensor(row[name])[:, None]
        logs[name] = model(ids, head="reward").logits[0, said].log_softmax(-1).gather(1, targets).sum()
        if name == "chosen_ids":
            fused = out.logits[0, said].log_softmax(-1).gather(1, targets).mean()
            alpha = out.alpha[0, said].double()
    spread = -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log()).mean()
    margin = 0.3 * (logs["chosen_ids"] - logs["rejected_ids"])
    wanted = -fused + 0.7 * torch.log(1 + torch.exp(-margin)) - 0.2 * spread
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-4)


@pytest.mark.parametrize("objective", ["preference", "mixed"])
def test_an_update_is_the_same_however_it_is_cut_up(config, tmp_path, objective):
    """Rows of different lengths, with and without a rejected answer: means over the update,
    not over micro-batches.
    """
    grads = []
    options = dict(
        objective=objective,
        rm_dropout=0.0,
        gating_dropout=0.0,
        **({"sft_ratio": 0.4} if objective == "mixed" else {}),
    )
    for size, parts in ((8, 1), (2, 4)):
        made = config(batch_size=size, gradient_accumulation_steps=parts, **options)
        trainer = trainer_of(made, tmp_path, gradient_accumulation_steps=parts, max_grad_norm=1e9)
        rows = [trainer.train_dataset[index] for index in range(8)]
        for index, row in enumerate(rows):
            row["chosen_ids"] = row["chosen_labels"] = row["chosen_ids"][: 1 + index]
        batches = iter([trainer.data_collator(rows[i : i + size]) for i in range(0, 8, size)])
        samples, count = trainer.get_batch_samples(batches, parts, torch.device("cpu"))
        trainer.current_gradient_accumulation_steps = parts
        trainer.model.train()
        for sample in samples:
            trainer.training_step(trainer.model, sample, count)
        grads.append(
            {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        )
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-5) for name in grads[0])


def test_the_entropy_term_pulls_the_gate_to_a_half():
    for start in (0.9, 0.1):
        score = torch.logit(torch.tensor(start)).requires_grad_()
        (-entropy(torch.sigmoid(score))).backward()
        assert (score.grad > 0) == (start > 0.5)  # a step against the gradient goes towards 0
    assert entropy(torch.tensor(0.5)).item() == pytest.approx(0.6931, abs=1e-4)
    assert torch.isfinite(entropy(torch.tensor([0.0, 1.0]))).all()


def test_prompts_are_shared_only_where_that_changes_nothing(policy):
    model, _ = load_model(str(policy.folder))
    assert shares_prompts(model, 64)
    sliding = copy.deepcopy(model)
    sliding.config.sliding_window = 16
    assert not shares_prompts(sliding, 64)


@pytest.mark.slow
def test_answers_alone_and_mixtures(config, tmp_path):
    talks = write_rows(
        tmp_path / "talks.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": f"{i}?"},
                    {"role": "assistant", "content": "Aye."},
                    {"role": "user", "content": "And?"},
                    {"role": "assistant", "content": "Row!"},
                ]
            }
            for i in range(200)
        ],
    )
    data = [write_rows(tmp_path / "pairs.jsonl", pairs(400)), talks]
    mixed = prepare(
        config(datasets=data, objective="mixed", sft_ratio=0.25), "cpu", "fp32", SILENT
    ).data.train
    alone = [not row["rejected_ids"] for row in mixed]
    assert sum(alone) / len(alone) == pytest.approx(0.25, abs=0.02)
    talk = mixed[alone.index(True)]
    assert talk["prompt_ids"] == [] and {-100} < set(talk["chosen_labels"])
    halves = prepare(
        config(datasets=data[:1], objective="mixed", sft_ratio=0.5), "cpu", "fp32", SILENT
    ).data.train
    assert sum(not row["rejected_ids"] for row in halves) == pytest.approx(len(halves) / 2, abs=1)
    only = prepare(config(datasets=data, objective="sft"), "cpu", "fp32", SILENT).data.train
    assert not any(row["rejected_ids"] for row in only)
    result = run(config(datasets=data, objective="sft", max_steps=4, warmup_steps=0))
    assert "eval_perplexity" in result.metrics and "eval_reward_accuracy" not in result.metrics
    with pytest.raises(LabError, match="no source holds pairs"):
        prepare(config(datasets=[talks], objective="mixed"), "cpu", "fp32", SILENT)
    with pytest.raises(LabError, match="needed: preference rows"):
        prepare(config(datasets=[talks]), "cpu", "fp32", SILENT)


@pytest.mark.slow
def test_a_quantised_backbone(config):
    result = run(config(load_in="4bit", max_steps=3, warmup_steps=0))
    assert result.model and "eval_reward_accuracy" in result.metrics


@pytest.mark.slow
def test_what_is_no_backbone_is_refused(config, tmp_path):
    made = CohereConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        logit_scale=0.06,
        pad_token_id=0,
    )
    with pytest.raises(LabError, match="scales or caps its logits"):
        refuse_other_logits(AutoModelForCausalLM.from_config(made), "cohere")
    result = run(config(max_steps=2, warmup_steps=0))
    with pytest.raises(LabError, match="a dual-head model itself and cannot be a backbone"):
        prepare(config(backbone=str(result.folder)), "cpu", "fp32", SILENT)
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        LabError, match="is a dual-head model with a frozen backbone; `sft` trains whole models"
    ):
        run(SFTConfig(policy_checkpoint=str(result.folder), datasets=[rows], eval_fraction=0))
    assert isinstance(load_model(str(result.folder))[0], LabDualHeadForCausalLM)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lambda_r": -1.0}, "lambda_r"),
        ({"lambda_g": -0.1}, "lambda_g"),
        ({"beta_r": 0.0}, "beta_r"),
        ({"gradient_checkpointing": True}, "saves nothing here"),
        ({"max_prompt_length": 64}, "leaves no room"),
        ({"objective": "sft", "beta_r": 0.5}, "beta_r"),
    ],
)
def test_bad_options_say_why(config, changes, said):
    with pytest.raises(ValueError, match=said):
        config(**changes)

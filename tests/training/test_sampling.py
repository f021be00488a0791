"""Answers drawn by numbers: with the right distribution, and alike in any batch,
at any micro-batch and beside any validation.
"""

import json

import pytest
import torch
from transformers import GenerationConfig

from llmlab.config import GRPOConfig
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from llmlab.training.sampling import ANSWERS, SeededDraw, SeededDraws, seeds_of_rows, spread_over_updates
from tests.conftest import small_model

ROWS = 4000


def distance(counts, probabilities):
    """Returns Pearson's chi square less its degrees of freedom, in standard deviations;
    rare tokens count as one.
    """
    assert (counts[probabilities == 0] == 0).all()
    expected = probabilities * counts.sum()
    rare = expected < 5
    seen = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen, expected = seen[expected > 0], expected[expected > 0]
    chi_square, freedom = ((seen - expected) ** 2 / expected).sum().item(), len(seen) - 1
    assert freedom > 4
    return (chi_square - freedom) / (2 * freedom) ** 0.5


def cut(logits, temperature, top_k, top_p):
    """The distribution by its definition: of the k likeliest tokens those that begin below the mass p."""
    probabilities = (logits.double() / temperature).softmax(-1)
    order = probabilities.argsort(descending=True)[: top_k or None]
    kept = probabilities[order] / probabilities[order].sum()
    kept = torch.where(kept.cumsum(0) - kept < top_p, kept, 0)
    return torch.zeros_like(probabilities).scatter(0, order, kept / kept.sum())


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 7, 1.0), (2.0, 0, 0.8), (0.7, 12, 0.9)]
)
def test_tokens_have_the_probabilities_of_the_model(temperature, top_k, top_p):
    torch.manual_seed(4)
    model = small_model()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.1)
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = cut(model(input_ids=prompt).logits[0, -1], temperature, top_k, top_p)
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=1,
        pad_token_id=0,
        watermarking_config=SeededDraws(seeds_of_rows(1, ANSWERS, 0, range(ROWS)), 1),
    )
    tokens = model.generate(input_ids=prompt.expand(ROWS, -1), generation_config=config)[:, -1]
    assert abs(distance(tokens.bincount(minlength=97), wanted)) < 3


def test_tokens_that_follow_each_other_are_independent_in_any_batch():
    torch.manual_seed(0)
    scores = torch.randn(5)
    draws = SeededDraws(seeds_of_rows(3, ANSWERS, 9, range(ROWS)), 2).construct_processor(5)
    pair = [draws(None, scores.expand(ROWS, -1)).argmax(-1) for _ in range(2)]
    wanted = scores.double().softmax(-1)
    assert (
        abs(distance((pair[0] * 5 + pair[1]).bincount(minlength=25), torch.outer(wanted, wanted).flatten()))
        < 3
    )
    some = [7, 3900, 12]
    again = SeededDraws(seeds_of_rows(3, ANSWERS, 9, some), 2).construct_processor(5)
    assert [again(None, scores.expand(3, -1)).argmax(-1).tolist() for _ in range(2)] == [
        part[some].tolist() for part in pair
    ]


@pytest.mark.parametrize("number", [0, 2**30 - 1])
def test_the_ends_of_the_interval_are_tokens_that_can_be_said(number):
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    drawn = SeededDraw(torch.tensor([[number]]))(None, scores)
    assert drawn.isfinite().sum() == 1 and drawn.argmax().item() == (3 if number else 1)


def test_an_update_is_over_the_same_rows_for_any_number_of_processes():
    whole = spread_over_updates(48, 4, seed=5, step=2)
    assert sorted(torch.cat(whole).tolist()) == list(range(48)) and {len(part) for part in whole} == {12}
    assert [part.tolist() for part in whole] != [
        part.tolist() for part in spread_over_updates(48, 4, seed=5, step=3)
    ]
    for processes in (2, 3, 4):
        size = 48 // processes
        shares = [
            spread_over_updates(size, 4, seed=5, step=2, first=rank * size) for rank in range(processes)
        ]
        for update, part in enumerate(whole):
            assert torch.equal(
                part, torch.cat([share[update] + rank * size for rank, share in enumerate(shares)])
            )


@pytest.mark.slow
def test_answers_depend_neither_on_the_micro_batch_nor_on_validations(base_run, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Who is {'very ' * (i % 4)}{i}?"}) + "\n" for i in range(32))
    )
    curves = []
    for micro, every in ((8, 2), (4, 4)):
        result = run(
            GRPOConfig(
                policy_checkpoint=str(base_run.folder),
                datasets=[str(data)],
                reward_model="length | 1 | 6",
                batch_size=8,
                group_size=4,
                mini_batch_size=micro,
                iterations=1,
                beta=0.0,
                max_new_tokens=6,
                max_steps=4,
                learning_rate=1e-3,
                warmup_steps=0,
                scheduler="none",
                eval_fraction=0.25,
                eval_every=every,
                eval_steps=50,
                log_every=1,
                save_every=4,
                max_prompt_length=64,
                output_dir=str(tmp_path / f"by-{micro}"),
                report_to=[],
            )
        )
        lines = RunFolder(result.folder).metrics()
        curves.append(
            [
                [line["reward"] for line in lines if "reward" in line],
                [line["eval_reward"] for line in lines if "eval_reward" in line and line["step"] in (0, 4)],
            ]
        )
    assert len(curves[0][0]) == 4 and len(set(curves[0][0])) > 1 and len(curves[0][1]) == 2
    assert curves[0] == [pytest.approx(part, abs=1e-6) for part in curves[1]]

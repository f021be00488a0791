"""The sample rows of the docs are those of `docs/samples/`, and the program learns from each of them."""

import json
import re
from pathlib import Path

import pytest

from llmlab.config import DPOConfig, GRPOConfig, PretrainConfig, SFTConfig, SourceConfig
from llmlab.data.opening import open_source
from llmlab.data.schemas import SHAPES
from llmlab.models.load import load_model
from llmlab.training.engine.run import run
from tests.tool_templates import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
SAMPLES = DOCS / "samples"
SHAPE = {  # file -> what its rows are recognised as
    "text": "text",
    "messages": "messages",
    "tools": "messages",
    "parallel_tools": "messages",
    "reasoning": "messages",
    "prompt_completion": "prompt_completion",
    "classification": "prompt_completion",
    "preference": "preference",
    "prompt_answer": "prompt_answer",
    "prompt": "prompt",
}
LABELS = {"format": "classification", "labels": ["ham", "spam"]}


def test_the_page_shows_the_first_row_of_every_file():
    page = (DOCS / "data.md").read_text()
    files = {file.stem for file in SAMPLES.glob("*.jsonl")}
    assert files == set(SHAPE)
    shown = re.findall(r"^```json\n(.*?)\n```$", page, re.M | re.S)
    for name in files:
        first = (SAMPLES / f"{name}.jsonl").read_text().splitlines()[0]
        assert first in shown and f"(samples/{name}.jsonl)" in page, name


@pytest.mark.parametrize("name", SHAPE)
def test_the_shape_of_a_sample_is_recognised(name):
    source = SourceConfig(name=str(SAMPLES / f"{name}.jsonl"), **(LABELS if name == "classification" else {}))
    # a prompt with an answer is one of prompt and completion as well, for the methods that learn answers
    needed = tuple(shape for shape in SHAPES if name != "prompt_answer" or shape != "prompt_completion")
    assert open_source(source, needed).mapping.makes == SHAPE[name]


def sources(*names):
    return [
        {"name": str(SAMPLES / f"{name}.jsonl"), **(LABELS if name == "classification" else {})}
        for name in names
    ]


@pytest.fixture(scope="module")
def thinker(base_run, tmp_path_factory):
    """The tiny base model with a chat template that knows tools and thoughts."""
    folder = tmp_path_factory.mktemp("thinker")
    model, tokenizer = load_model(str(base_run.folder))
    tokenizer.chat_template = FAMILIES["qwen3"].template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


STEP = dict(max_steps=1, eval_fraction=0, report_to=[], learning_rate=1e-4, save_best_only=False)
PAIR = dict(batch_size=4, mini_batch_size=2, max_prompt_length=64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "sft", "dpo", "grpo"])
def test_the_program_learns_from_the_samples(kind, thinker, tmp_path):
    told = dict(output_dir=str(tmp_path / "run"), **STEP)
    if kind == "pretrain":
        config = PretrainConfig(init_from=thinker, datasets=sources("text"), batch_size=1, **told)
    elif kind == "sft":
        names = ("messages", "tools", "parallel_tools", "reasoning", "prompt_completion", "classification")
        config = SFTConfig(
            policy_checkpoint=thinker,
            datasets=sources(*names),
            max_length=1024,
            mixture_stop="all_exhausted",
            **told,
        )
    elif kind == "dpo":
        config = DPOConfig(
            policy_checkpoint=thinker, datasets=sources("preference"), reference="live", **PAIR, **told
        )
    else:
        config = GRPOConfig(
            policy_checkpoint=thinker,
            datasets=sources("prompt", "prompt_answer"),
            reward_model="length",
            group_size=2,
            max_new_tokens=4,
            **PAIR,
            **told,
        )
    result = run(config)
    rows = kind == SFTConfig.KIND and [source["left_out"] for source in facts(result)]
    assert result.model is not None and not any(rows or [])


def facts(result):
    return json.loads((result.folder / "run.json").read_text())["data_rows"]

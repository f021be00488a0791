"""Before a run: a row as the model sees it, rows that are trained and validated on, and a few real steps."""

import io
import json

import pytest
from rich.console import Console

from llmlab.config import GRPOConfig, PretrainConfig, SFTConfig
from llmlab.data.preview import Overlap, overlaps
from llmlab.errors import LabError
from llmlab.planning.measured import measure
from llmlab.training.registry import STAGES
from llmlab.ui import preflight

pytestmark = pytest.mark.slow  # trains


@pytest.fixture
def rows(tmp_path):
    def write(name, numbers):
        (tmp_path / name).write_text(
            "".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in numbers)
        )
        return str(tmp_path / name)

    return write


def said(config):
    console = Console(record=True, width=120, file=io.StringIO())
    for line in preflight.of_the_data(config):
        console.print(line)
    return console.export_text()


def test_rows_that_are_trained_and_validated_on_are_told(rows):
    train, other = rows("train.jsonl", range(50)), rows("other.jsonl", range(40, 60))
    alone = rows("alone.jsonl", range(90, 99))
    config = SFTConfig(datasets=[train], eval_datasets=[other, alone, "HuggingFaceH4/ultrachat_200k"])
    shapes = STAGES["sft"].shapes
    assert overlaps(config, shapes) == [
        Overlap(config.eval_datasets[0], shared=10, looked_at=20, contaminated=10)
    ]
    assert f"warning: 10 of the 20 validation rows of {other}" in " ".join(said(config).split())
    assert not overlaps(SFTConfig(datasets=[train]), shapes)


def test_a_row_is_shown_as_the_model_will_see_it(base_run, rows):
    data = rows("train.jsonl", range(5))
    shown = said(SFTConfig(policy_checkpoint=str(base_run.folder), datasets=[data]))
    assert "a row as the model sees it; what is learned stands between « and »" in shown
    assert "Who is 0?" in shown.split("«")[1] and "«Ahab<|im_end|>" in shown
    shown = said(
        GRPOConfig(policy_checkpoint=str(base_run.folder), datasets=[data], reward_model="exact_match")
    )
    assert (
        "a prompt as the model sees it" in shown
        and "the reference answer, for rewards that compare: Ahab" in shown
    )


def test_a_few_real_steps_are_measured_and_leave_nothing(base_run, rows, tmp_path):
    config = SFTConfig(
        policy_checkpoint=str(base_run.folder),
        datasets=[rows("train.jsonl", range(60))],
        max_steps=1000,
        batch_size=4,
        gradient_accumulation_steps=1,
        max_length=48,
        output_dir=str(tmp_path / "run"),
    )
    found = measure(config)
    assert 0 < found.seconds < 60 and 1e8 < found.peak < 1e10
    lines = preflight.measured_lines(found, config)
    assert "for 1,000 steps" in lines[0] and "predicted" in lines[1]
    assert not (tmp_path / "run").exists()


def test_steps_that_cannot_be_measured_say_why(tmp_path):
    config = PretrainConfig(
        model={"kind": "model", "tokenizer_name": "byte", "vocab_size": 8}, datasets=["llmlab:moby-dick"]
    )
    with pytest.raises(LabError, match=r"the measured steps failed: .*vocab_size"):
        measure(config)

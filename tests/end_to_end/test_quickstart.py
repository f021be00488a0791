"""The whole pipeline, small: every figure is there, every config replays."""

import json

import pytest

from llmlab.config import load_config
from tests.conftest import llmlab

pytestmark = pytest.mark.slow  # trains

ANSWERS = ("completion", "answer", "chosen")


def right_answer(question):
    """Read from the question alone, without the code that made it."""
    words = question.rstrip(".?").replace(",", "").split()
    numbers = [int(word) for word in words if word.isdigit()]
    match words[0]:
        case "Add":
            return str(sum(numbers))
        case "Subtract":
            return str(numbers[1] - numbers[0])
        case "Copy:":
            return " ".join(words[1:])
        case "Reverse:":
            return " ".join(words[:0:-1])
        case "Count:":
            return str(len(words) - 1)
        case "Last":
            return words[-1]
    return str(numbers[0] + 1) if "after" in words else str(max(numbers))


def test_quickstart_and_a_replay(tmp_path):
    done = llmlab("quickstart", "--minutes", "0.05", "-o", "checkpoints/q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "checkpoints/q/quickstart.json").read_text())
    figures = {(row["stage"], row["figure"]): row for row in record["figures"]}
    assert figures["base", "bits per byte"]["after"] < figures["base", "bits per byte"]["before"]
    exact = [figures[stage, "exact match"] for stage in ("SFT", "GRPO", "DPO")]
    assert (
        exact[0]["after"] == exact[1]["before"] == exact[2]["before"]
    )  # both kinds of alignment start from the SFT model
    assert ("DPO", "preference accuracy") in figures
    assert all(
        figures[stage, "right in either style"]["after"] >= figures[stage, "exact match"]["after"]
        for stage in ("SFT", "GRPO", "DPO")
    )
    assert "llmlab chat checkpoints/q/grpo" in done.stdout and "95 % of such shares" in done.stdout
    assert "every other one as a sentence" in done.stdout  # what the SFT data is made of is said
    for kind in ("base", "sft", "grpo", "dpo"):
        load_config(tmp_path / f"checkpoints/q/{kind}.json")
    held_out = {
        json.loads(line)["prompt"]
        for line in (tmp_path / "checkpoints/q/test.jsonl").read_text().splitlines()
    }
    sentences = 0
    for name in ("sft", "prompts", "dpo"):  # every answer is right, no held-out question among them
        rows = [
            json.loads(line) for line in (tmp_path / f"checkpoints/q/{name}.jsonl").read_text().splitlines()
        ]
        assert rows and not held_out & {row["prompt"] for row in rows}
        for row in rows:
            bare, given = right_answer(row["prompt"]), next(row[key] for key in ANSWERS if key in row)
            assert given == bare or (name == "sft" and given == f"The answer is {bare}.")
            sentences += given != bare
        assert name != "sft" or sentences == len(rows) / 2
    replay = llmlab("run", "checkpoints/q/base.json", "--json", cwd=tmp_path)
    assert replay.returncode == 0, replay.stderr
    again = json.loads(replay.stdout)
    assert again["run"] == "checkpoints/q/base-2"
    assert again["metrics"]["eval_bits_per_byte"] == figures["base", "bits per byte"]["after"]
    answer = llmlab(
        "chat", "checkpoints/q/grpo", "--set", "max_new_tokens=5", cwd=tmp_path, stdin="Add 1 and 2.\n"
    )
    assert answer.returncode == 0

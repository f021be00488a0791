"""The whole pipeline, small: every figure is there, every config replays."""

import json

from llmlab.config import load_config
from tests.test_cli import llmlab


def test_quickstart_and_a_replay(tmp_path):
    done = llmlab("quickstart", "--minutes", "0.3", "-o", "checkpoints/q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "checkpoints/q/quickstart.json").read_text())
    figures = {(row["stage"], row["figure"]): row for row in record["figures"]}
    assert figures["base", "bits per byte"]["after"] < figures["base", "bits per byte"]["before"]
    assert {("SFT", "held-out exact match"), ("DPO", "held-out exact match"), ("DPO", "preference accuracy")} < set(figures)
    assert "llmlab chat checkpoints/q/dpo" in done.stdout and "preference accuracy" in done.stdout
    assert "50% of the answers in the SFT data are wrong on purpose" in done.stdout  # nothing is planted in silence
    for kind in ("base", "sft", "dpo"):
        load_config(tmp_path / f"checkpoints/q/{kind}.json")
    replay = llmlab("run", "checkpoints/q/base.json", "--json", cwd=tmp_path)
    assert replay.returncode == 0, replay.stderr
    again = json.loads(replay.stdout)
    assert again["run"] == "checkpoints/q/base-2"
    assert again["metrics"]["eval_bits_per_byte"] == figures["base", "bits per byte"]["after"]
    answer = llmlab("chat", "checkpoints/q/dpo", "--set", "max_new_tokens=5", cwd=tmp_path, stdin="Add 1 and 2.\n")
    assert answer.returncode == 0

"""GRPO and PPO in several processes do what they do in one."""

import json
import os
import subprocess
import sys

import pytest

from llmlab.config import GRPOConfig, PPOConfig, save_config
from llmlab.runs.folder import RunFolder
from llmlab.train.engine import run

METHODS = {GRPOConfig: dict(beta=0.0, iterations=2, group_size=4), PPOConfig: dict(kl_coef=0.0, ppo_epochs=2)}


def together(config, path, count=2):
    """Runs a config in several processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "llmlab", "run"]
    return subprocess.run(
        [sys.executable, *command, str(save_config(config, path))], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def rollouts(lines):
    """Returns at which steps answers were made, by the figures that only a rollout has."""
    return [line["step"] for line in lines if "reward" in line]


@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_make_and_use_as_many_answers_as_one(base_run, tmp_path, kind):
    """Greedy answers (top k of 1) depend on no random numbers: rewards of the same prompts are the same until the first update."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Who is {i}?", "answer": "Ahab"}) + "\n" for i in range(32)))
    results = []
    for name, share in (("one", 16), ("two", 8)):
        config = kind(
            policy_checkpoint=str(base_run.folder), datasets=[str(data)], reward_model="length | 1 | 6", top_k=1, batch_size=share,
            mini_batch_size=share // 2, max_new_tokens=6, max_steps=8, learning_rate=1e-9, warmup_steps=0, scheduler="none",
            eval_fraction=0.0, log_every=1, save_every=8, max_prompt_length=64, output_dir=str(tmp_path / name), report_to=[],
            **METHODS[kind],
        )  # fmt: skip
        if name == "one":
            run(config)
        else:
            done = together(config, tmp_path / "two.json")
            assert done.returncode == 0, done.stderr[-3000:]
        results.append(RunFolder(tmp_path / name).metrics())
    one, two = results
    assert rollouts(one) and rollouts(one) == rollouts(two)
    for figure in ("reward", "completions/mean_length", "entropy", "num_tokens"):
        figures = [[line[figure] for line in lines if figure in line and "step" in line] for lines in results]
        assert figures[0] and figures[1] == pytest.approx(figures[0], rel=1e-4), figure


PART_OF_ITS_OWN = """
import os, sys
from pathlib import Path
import torch
from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.screen import LabConsole
from llmlab.train.environment import join_processes, leave_processes
from llmlab.train.trouble import Trouble
join_processes("cpu")
part, rank = torch.nn.Linear(2, 2), os.environ["RANK"]
trouble = Trouble(RunFolder(Path(sys.argv[1])), LabConsole(quiet=True), 1)
trouble.check_weights(part, Path("checkpoint-1"))
if rank == "1":
    part.weight.data.fill_(float("nan"))
try:
    trouble.check_weights(part, Path("checkpoint-2"))
except LabError as error:
    (Path(sys.argv[1]) / f"refused-by-{rank}").write_text(str(error))
leave_processes()
"""


def test_weights_that_are_no_numbers_in_one_process_are_refused_by_all(tmp_path):
    (tmp_path / "part.py").write_text(PART_OF_ITS_OWN)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "part.py"),
         str(tmp_path)], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert "checkpoint-2 was not sealed" in (tmp_path / f"refused-by-{rank}").read_text()

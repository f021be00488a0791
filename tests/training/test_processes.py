"""Several processes do what one does: GRPO and PPO, and a run that goes from one to two and back."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from llmlab.config import GRPOConfig, PPOConfig, SFTConfig, save_config
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.watching import Evaluator
from llmlab.runs import evaluations
from llmlab.runs.figures import SUITE_SECONDS, is_of_suite
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from llmlab.training.rewards import weighted
from tests.conftest import write_rows
from tests.training.jobs import several

pytestmark = pytest.mark.slow  # trains

METHODS = {
    GRPOConfig: dict(beta=0.05, iterations=2, group_size=4, grpo_temperature=0.9),
    PPOConfig: dict(kl_coef=0.05, ppo_epochs=2, temperature=0.9, missing_end_penalty=0.5),
}
CLOCK = ("step_time", "runtime", "per_second", "profiling", "flos")


def together(config, path, *more, count=2):
    """Runs a config in several processes."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        "-m",
        "llmlab",
        "run",
    ]
    return subprocess.run(
        [sys.executable, *command, str(save_config(config, path)), *more],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def figures(folder):
    """Returns the logged figures that are no times, by step and name."""
    lines = RunFolder(folder).metrics()
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if not any(part in name for part in CLOCK)
    }


def method_config(kind, start, folder, rows):
    """A short run of a method whose processes each read that many rows."""
    return kind(
        policy_checkpoint=str(start.folder),
        datasets=[str(folder / "prompts.jsonl")],
        reward_model="length | 1 | 6",
        top_k=50,
        top_p=0.95,
        batch_size=rows,
        mini_batch_size=rows // 2,
        max_new_tokens=6,
        max_steps=8,
        learning_rate=1e-3,
        warmup_steps=0,
        scheduler="none",
        eval_fraction=0.0,
        log_every=1,
        save_every=8,
        max_prompt_length=64,
        output_dir=str(folder / f"{kind.KIND}-{rows}"),
        report_to=[],
        **METHODS[kind],
    )


def watched_config(start, folder, rows):
    """A short run that is evaluated on a suite."""
    asked = [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(16)]
    source = write_rows(folder / "asked.jsonl", asked)
    tasks = [{"source": source, "by": "generate"}, {"source": source}]
    (folder / "suite.json").write_text(json.dumps({"tasks": tasks}))
    return SFTConfig(
        policy_checkpoint=str(start.folder),
        datasets=[source],
        batch_size=rows,
        gradient_accumulation_steps=1,
        max_steps=4,
        learning_rate=1e-3,
        warmup_steps=0,
        max_length=64,
        packing=False,
        eval_fraction=0.0,
        evaluation_suite=str(folder / "suite.json"),
        evaluate_every=2,
        evaluation_batch_size=3,
        metric_for_best="loss",
        output_dir=str(folder / f"watched-{rows}"),
        report_to=[],
    )


@pytest.fixture(scope="module")
def runs(base_run, tmp_path_factory):
    """Both methods in one process and, in one job, in two."""
    folder = tmp_path_factory.mktemp("methods")
    prompts = [{"prompt": f"Who is {'very ' * (i % 4)}{i}?"} for i in range(32)]
    write_rows(folder / "prompts.jsonl", prompts)
    for kind in METHODS:
        run(method_config(kind, base_run, folder, 16))
    run(watched_config(base_run, folder, 8), evaluator=Evaluator(weighted))
    plan = [{"config": method_config(kind, base_run, folder, 8).to_json_dict()} for kind in METHODS]
    plan += [{"config": watched_config(base_run, folder, 4).to_json_dict()}]
    assert not [part["error"] for part in several(plan, folder) if part["error"]]
    said = (folder / "stderr.txt").read_text()
    assert "Tried to track" not in said  # a library's raw log, of the second process
    return folder


@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_do_what_one_does(base_run, runs, kind):
    """Answers, rewards, losses, every other figure and the weights, while the policy moves."""
    places = [runs / f"{kind.KIND}-{rows}" for rows in (16, 8)]
    one, two = map(figures, places)
    assert (
        one.keys() == two.keys() and len({value for (_, name), value in one.items() if name == "reward"}) > 1
    )
    for place, value in one.items():
        assert two[place] == pytest.approx(value, rel=1e-5, abs=2e-5), place
    weights = [load_file(place / "final" / "model.safetensors") for place in places]
    start = load_file(base_run.model / "model.safetensors")
    moved = [sum((w[name] - start[name]).norm() ** 2 for name in start) ** 0.5 for w in weights]
    apart = sum((weights[0][name] - weights[1][name]).norm() ** 2 for name in start) ** 0.5
    assert moved[0] > 0.1 and apart < 1e-3 * moved[0]


def test_two_processes_share_the_answers_of_a_suite(base_run, runs):
    """The same answers, and figures that are as near as the weights are."""
    one, two = (runs / f"watched-{rows}" for rows in (8, 4))
    every = [RunFolder(place).metrics() for place in (one, two)]
    lines = [{line["step"]: line for line in each if SUITE_SECONDS in line} for each in every]
    names = [name for name in lines[0][0] if is_of_suite(name)]
    assert len(names) == 2 and list(lines[0]) == list(lines[1])
    for step in (0, 2, 4):
        for name in names:
            assert lines[1][step][name] == pytest.approx(lines[0][step][name], abs=1e-5), (step, name)
    answers = [EvaluationFolder(evaluations.place(place, 0)).answers() for place in (one, two)]
    given = [{(a["source"], a["row"], a["answer"]): a["log_prob"] for a in each} for each in answers]
    assert given[0].keys() == given[1].keys() and len(given[0]) == 32
    # a processor's kernels for one row go by where the weights lie in memory
    assert all(given[1][key] == pytest.approx(value, abs=1e-5) for key, value in given[0].items())
    steps = [RunFolder(place).record["best"]["step"] for place in (one, two)]
    assert steps[0] == steps[1]


def test_one_process_two_and_one_again_end_like_one(base_run, tmp_path, told):
    """A real run goes from one process to two and back, each time between two logged losses:
    what was summed is kept.
    """
    rows = [
        {"prompt": f"Who is {'very ' * (i % 4)}{i}?", "completion": "Ahab" if i % 3 else "Stubb"}
        for i in range(64)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)

    def config(steps, batch, name="run"):
        return SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[data],
            batch_size=batch,
            gradient_accumulation_steps=1,
            max_steps=steps,
            learning_rate=1e-3,
            warmup_steps=0,
            scheduler="none",
            max_length=64,
            packing=False,
            log_every=4,
            eval_fraction=0.2,
            eval_every=5,
            eval_rows=8,
            save_every=3,
            sample_tokens=0,
            output_dir=str(tmp_path / name),
            report_to=[],
        )

    whole = run(config(9, 8, "whole"))
    folder = tmp_path / "run"
    run(config(3, 8))
    done = together(config(6, 4), tmp_path / "two.json", "--resume", str(folder / "checkpoint-3"))
    assert done.returncode == 0 and "1 processes -> 2: an update reads 8 rows" in done.stderr, done.stderr[
        -3000:
    ]
    assert done.stdout.count("run/best") == 1 and done.stderr.count("4 x 1 x 2 = 8") == 1, (
        "one speaks for both"
    )
    assert {path.name for path in (folder / "checkpoint-6").glob("lab_state*")} == {
        "lab_state_0.json",
        "lab_state_1.json",
    }
    result = run(config(9, 8), resume=str(folder / "checkpoint-6"), reporter=told)
    assert "2 processes -> 1: an update reads 8 rows" in told.text
    found, wanted = (
        [line for line in RunFolder(path).metrics() if "loss" in line]
        for path in (result.folder, whole.folder)
    )
    assert [line["step"] for line in found] == [line["step"] for line in wanted] == [1, 4, 8]
    for line, same in zip(found, wanted, strict=True):
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-5)
    weights, others = (load_file(one.folder / "best" / "model.safetensors") for one in (result, whole))
    assert max((weights[name] - others[name]).abs().max().item() for name in weights) < 1e-5


PART_OF_ITS_OWN = """
import os, sys
from pathlib import Path
import torch
from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.distributed import init_process_group, destroy_process_group
from llmlab.training.callbacks.non_finite import NonFiniteGuard
from llmlab.training.callbacks.stop import Stopped, StopOnSignal
from llmlab.training.engine.workers import JobWorkers
from llmlab.runs.disk import FullDisk
init_process_group("cpu", 60)
part, rank = torch.nn.Linear(2, 2), os.environ["RANK"]
def train():
    shared = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    shared.trainer = shared  # trainers hold themselves
    shared(torch.ones(1, 2)).sum().backward()
train()
guard = NonFiniteGuard(RunFolder(Path(sys.argv[1])), print, 1)
guard.check_weights(part.parameters(), "checkpoint-1")
if rank == "1":
    part.weight.data.fill_(float("nan"))
try:
    guard.check_weights(part.parameters(), "checkpoint-2")
except LabError as error:
    (Path(sys.argv[1]) / f"refused-by-{rank}").write_text(str(error))
workers = JobWorkers.of_this_job(StopOnSignal(), FullDisk(print), Path(sys.argv[1]))
assert workers.together(lambda: [workers.process]) == [0, 1] and workers.from_first(lambda: 7) == 7
for name, error in (("failed", LabError), ("ended", Stopped)):
    if name == "ended" and rank == "1":
        workers.stop.received = 15
    try:
        workers.together(lambda: [1] if rank == "0" or name == "ended" else [1 / 0])
    except error as told:
        (Path(sys.argv[1]) / f"{name}-in-{rank}").write_text(f"{told} {workers.stop.received}")
destroy_process_group()
threads = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
gloo = " ".join(name.strip() for name in threads if "gloo" in name)
(Path(sys.argv[1]) / f"left-by-{rank}").write_text(gloo)
"""


def test_weights_that_are_no_numbers_in_one_process_are_refused_by_all_and_none_leaves_a_thread(tmp_path):
    """A thread of the connection that still runs when Python ends can abort the process,
    after all its work.
    """
    (tmp_path / "part.py").write_text(PART_OF_ITS_OWN)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "part.py"),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert "checkpoint-2 was not saved" in (tmp_path / f"refused-by-{rank}").read_text()
        assert (tmp_path / f"left-by-{rank}").read_text() == ""
        # an evaluation that fails in one process, or is to end there, ends in both
        assert "process 1 failed in an evaluation" in (tmp_path / f"failed-in-{rank}").read_text()
        assert (tmp_path / f"ended-in-{rank}").read_text().split() == ["15"]

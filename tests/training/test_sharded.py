"""FSDP2: every kind of run equals one process, resumes exactly, and goes to another number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llmlab.config import parse_config
from llmlab.training.engine.run import run
from tests.training.stages import STAGES, ending, stage_config
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow  # trains
ROOT = Path(__file__).parents[2]
SHORT = dict(
    max_steps=4, log_every=1, eval_every=2, save_every=2, warmup_steps=0, sample_tokens=0, eval_rows=8
)
STILL = dict(lora_dropout=0.0, rm_dropout=0.0, gating_dropout=0.0)  # each process draws its own
KINDS = [name for name in STAGES if name not in ("ppo-lora", "dpo-live")]
RESUMED = ["sft-lora", "ppo"]


def several(plan, folder):
    """Runs configs in two processes of one job; returns what became of each."""
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "tests.training.several", str(folder / "plan.json"), str(folder / "result.json")),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "shims")]),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


def config_of(stage, policy, folder, processes, **changes):
    """A short run as JSON data, whose updates are over the same rows in any number of processes."""
    values = stage_config(stage, policy, folder).to_json_dict()
    changes = {**SHORT, **{name: value for name, value in STILL.items() if name in values}, **changes}
    if "reward_model" in values:
        changes["reward_model"] = ["length | 1 | 4"]
    if "ppo_epochs" in values:
        changes["ppo_epochs"] = 1  # a checkpoint falls between two rollouts, which another number takes over
    for size in ("batch_size", "mini_batch_size"):
        if size in values:
            changes[size] = values[size] // processes
    return {**values, **changes}


def apart(one, other):
    """Returns the largest difference between the weights of two results."""
    weights = [load_file(next((folder / "final").glob("*model.safetensors"))) for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    return max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])


@pytest.fixture(scope="module")
def runs(base_run, tmp_path_factory):
    """Every kind in one process and in two; what two say of their engine; and two that are resumed."""
    folder, policy = tmp_path_factory.mktemp("sharded"), str(base_run.folder)
    plan = []
    for kind in KINDS:
        one = folder / f"{kind}-one"
        run(parse_config(config_of(kind, policy, one, 1)))
        shutil.copytree(one, folder / f"{kind}-from-one")
        two = folder / f"{kind}-two"
        plan.append({"config": config_of(kind, policy, two, 2, parallel="fsdp2")})
        if kind not in RESUMED:
            continue
        plan.append({"copy": [str(two), str(folder / f"{kind}-again")]})
        plan.append({"copy": [str(two), str(folder / f"{kind}-to-one")]})
        for name in ("again", "from-one"):
            place = folder / f"{kind}-{name}"
            config = config_of(kind, policy, place, 2, parallel="fsdp2")
            plan.append({"config": config, "resume": str(place / "checkpoint-2")})
    results = several(plan, folder)
    assert not [part["error"] for part in results if part and part["error"]]
    for kind in RESUMED:
        place = folder / f"{kind}-to-one"
        run(parse_config(config_of(kind, policy, place, 1)), resume=str(place / "checkpoint-2"))
    engines = {}
    for part, result in zip(plan, results, strict=True):
        if result and "resume" not in part:
            engines[Path(part["config"]["output_dir"]).name.removesuffix("-two")] = result["engine"]
    return folder, engines


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_fsdp2_do_what_one_does(runs, kind):
    folder, engines = runs
    assert engines[kind].startswith("fsdp2 over 2 processes")
    assert apart(folder / f"{kind}-one", folder / f"{kind}-two") < 2e-4


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_is_the_same_to_the_bit(runs, kind):
    folder, _ = runs
    weights, lines, _ = ending(folder / f"{kind}-two")
    again, same_lines, _ = ending(folder / f"{kind}-again")
    assert all(weights[name].equal(again[name]) for name in weights) and lines == same_lines


@pytest.mark.parametrize("way", ["from-one", "to-one"])
@pytest.mark.parametrize("kind", RESUMED)
def test_a_checkpoint_is_read_by_another_number_of_processes(runs, kind, way):
    folder, _ = runs
    assert apart(folder / f"{kind}-one", folder / f"{kind}-{way}") < 2e-4

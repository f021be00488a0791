"""FSDP2: every kind of run equals one process, resumes exactly, and goes to another number of processes."""

import shutil
from pathlib import Path

import pytest

from llmlab.config import parse_config
from llmlab.training.engine.run import run
from tests.training.jobs import apart, config_of, several
from tests.training.stages import STAGES, ending

pytestmark = pytest.mark.slow  # trains
SHORT = dict(
    max_steps=4, log_every=1, eval_every=2, save_every=2, warmup_steps=0, sample_tokens=0, eval_rows=8
)
STILL = dict(lora_dropout=0.0, rm_dropout=0.0, gating_dropout=0.0)  # each process draws its own
KINDS = ["pretrain", *(name for name in STAGES if name not in ("ppo-lora", "dpo-live", "sft"))]
RESUMED = ["sft-lora", "ppo"]


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

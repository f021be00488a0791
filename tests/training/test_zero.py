"""ZeRO-2 and ZeRO-3: runs equal one process, resume exactly, go to other engines and numbers of processes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmlab.config import parse_config
from llmlab.evaluation.watching import Evaluator
from llmlab.models.load import load_model
from llmlab.runs.figures import SUITE
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from llmlab.training.rewards import weighted
from tests.conftest import write_rows
from tests.training.broken import broken
from tests.training.jobs import apart, config_of, several
from tests.training.stages import ending

pytestmark = [
    pytest.mark.slow,  # trains
    pytest.mark.timeout(600),  # of the job that makes all of it
    pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs the extra `deepspeed`"),
]
KINDS = ["pretrain", "sft-lora", "reward", "dpo"]
ENGINES = ["zero2", "zero3"]
RESUMED = {("sft-lora", "zero2"): ["from-one"], ("dpo", "zero3"): ["from-one", "to-one", "to-fsdp2"]}
BAD_ROW = "Who is 10?"  # of the second update
FILE = {"zero_optimization": {"reduce_bucket_size": 5000, "stage": 2}}


@pytest.fixture(scope="module")
def folder(base_run, tmp_path_factory):
    """The folder of all runs: in one process `KIND-one`, in two `KIND-ENGINE` and what was resumed of it."""
    folder, policy = tmp_path_factory.mktemp("zero"), str(base_run.model)
    (folder / "settings.json").write_text(json.dumps(FILE))
    plan = []

    def add(kind, name, engine, resume="", word="", **changes):
        place = folder / name
        part = {"config": config_of(kind, policy, place, 2, parallel=engine, **changes), "broken": word}
        plan.append({**part, "resume": str(place / resume)} if resume else part)

    def copy(name, to):
        plan.append({"copy": [str(folder / name), str(folder / to)]})

    for kind in KINDS:
        run(parse_config(config_of(kind, policy, folder / f"{kind}-one", 1)))
        for engine in ENGINES:
            add(kind, f"{kind}-{engine}", engine)
    for (kind, engine), ways in RESUMED.items():
        for name in ("again", *ways):
            copy(f"{kind}-one" if name == "from-one" else f"{kind}-{engine}", f"{kind}-{engine}-{name}")
            if name != "to-one":
                other = "fsdp2" if name == "to-fsdp2" else engine
                add(kind, f"{kind}-{engine}-{name}", other, "checkpoint-2")
    copy("dpo-zero3", "dpo-zero3-ended")
    add("dpo", "dpo-zero3-ended", "zero3", "checkpoint-4")
    with broken(BAD_ROW, policy):
        run(parse_config(config_of("sft", policy, folder / "broken-one", 1)))
    for engine in ENGINES:
        file = str(folder / "settings.json") if engine == "zero2" else None
        add("sft", f"broken-{engine}", engine, word=BAD_ROW, deepspeed_config=file)
    add("pretrain", "bf16", "zero3", precision="bf16")
    copy("bf16", "bf16-again")
    add("pretrain", "bf16-again", "zero3", "checkpoint-2", precision="bf16")
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(10)]
    suite = {"evaluation_suite": write_rows(folder / "asked.jsonl", rows), "evaluate_every": 2}
    run(
        parse_config(config_of("sft", policy, folder / "watched-one", 1, **suite)),
        evaluator=Evaluator(weighted),
    )
    add("sft", "watched-zero2", "zero2", **suite)
    add("sft", "muon", "zero2", optimizer="muon")
    results = several(plan, folder)
    assert not [part["error"] for part in results[:-1] if part and part["error"]]
    (folder / "said.json").write_text(
        json.dumps(
            {
                Path(part["config"]["output_dir"]).name: result
                for part, result in zip(plan, results, strict=True)
                if result
            }
        )
    )
    place = folder / "dpo-zero3-to-one"
    run(parse_config(config_of("dpo", policy, place, 1)), resume=str(place / "checkpoint-2"))
    return folder


def said(folder, name):
    return json.loads((folder / "said.json").read_text())[name]


def losses(folder):
    return [line["loss"] for line in RunFolder(folder).metrics() if "loss" in line]


def test_its_processes_share_a_suite(folder):
    name = f"{SUITE}asked/loss"
    one, two = (
        {line["step"]: line[name] for line in RunFolder(folder / place).metrics() if name in line}
        for place in ("watched-one", "watched-zero2")
    )
    assert one.keys() == two.keys() == {0, 2, 4} and two[0] == one[0] > one[4]
    assert all(two[step] == pytest.approx(one[step], abs=1e-3) for step in one)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_do_what_one_does(folder, kind, engine):
    one, two = folder / f"{kind}-one", folder / f"{kind}-{engine}"
    assert said(folder, two.name)["engine"].startswith(f"{engine} over 2 processes: ")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert apart(one, two) < 1e-5


def test_what_is_in_effect_is_said(folder):
    assert said(folder, "dpo-zero3")["engine"] == "zero3 over 2 processes: 20 of 20 parameters sharded"
    gradients = "gradients and optimizer states of 28 of 48 parameters sharded"  # the adapter learns
    assert said(folder, "sft-lora-zero2")["engine"] == f"zero2 over 2 processes: {gradients}"


@pytest.mark.parametrize("name", [*(f"{kind}-{engine}" for kind, engine in RESUMED), "bf16"])
def test_a_resumed_run_is_the_same_to_the_bit(folder, name):
    weights, lines, _ = ending(folder / name)
    again, same_lines, _ = ending(folder / f"{name}-again")
    assert all(weights[key].equal(again[key]) for key in weights) and lines == same_lines


@pytest.mark.parametrize(
    ("kind", "engine", "way"), [(*which, way) for which, ways in RESUMED.items() for way in ways]
)
def test_a_checkpoint_is_read_by_other_engines_and_numbers_of_processes(folder, kind, engine, way):
    assert apart(folder / f"{kind}-one", folder / f"{kind}-{engine}-{way}") < 1e-5


def test_a_checkpoint_holds_no_pickle_of_deepspeed(folder):
    for engine in ENGINES:
        checkpoint = folder / f"sft-lora-{engine}" / "checkpoint-4"
        pickles = {file.name for file in checkpoint.rglob("*") if file.suffix in (".pt", ".pth", ".bin")}
        assert pickles == {"scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"}


def test_a_run_killed_behind_its_last_step_is_completed(folder):
    assert apart(folder / "dpo-zero3", folder / "dpo-zero3-ended") == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_an_update_that_is_not_finite_is_skipped_as_in_one_process(folder, engine):
    one, two = folder / "broken-one", folder / f"broken-{engine}"
    for place in (one, two):  # every process notes its own rows
        assert {line["step"] for line in RunFolder(place).metrics() if "skipped" in line} == {2}
    assert apart(one, two) < 1e-5


def test_weights_are_saved_in_full_precision_and_load_as_such(folder):
    weights = load_file(folder / "bf16" / "final" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert any(not value.equal(value.bfloat16().float()) for value in weights.values())
    model, _ = load_model(str(folder / "bf16" / "final"))
    assert model.dtype == torch.float32
    assert losses(folder / "bf16") == pytest.approx(losses(folder / "pretrain-one"), rel=2e-3)


def test_the_settings_are_kept_and_a_file_changes_them(folder):
    settings = json.loads((folder / "broken-zero2" / "deepspeed.json").read_text())
    assert settings["zero_optimization"]["reduce_bucket_size"] == 5000
    assert settings["train_batch_size"] == 8 and settings["gradient_clipping"] == 1.0
    own = json.loads((folder / "broken-zero3" / "deepspeed.json").read_text())
    assert own["zero_optimization"]["reduce_bucket_size"] == 64**2


def test_an_optimizer_that_needs_whole_matrices_is_refused(folder):
    assert "muon" in said(folder, "muon")["error"] and "flat pieces" in said(folder, "muon")["error"]

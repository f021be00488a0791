"""Layers computed by several processes together: runs that equal one process, and what is refused."""

import pytest
from torch import nn

from llmlab.config import GRPOConfig, SFTConfig, parse_config
from llmlab.errors import LabError
from llmlab.training.engine.run import run
from llmlab.training.engine.tensor_parallel import divide_layers
from tests.conftest import small_model
from tests.training.jobs import apart, config_of, several
from tests.training.stages import ending

KINDS = ["pretrain", "dpo"]


@pytest.fixture(scope="module")
def runs(base_run, tmp_path_factory):
    """Kinds in one process and with layers over two; one that is resumed by two, and by one."""
    folder, policy = tmp_path_factory.mktemp("tensor"), str(base_run.folder)
    plan = []
    for kind in KINDS:
        run(parse_config(config_of(kind, policy, folder / f"{kind}-one", 1)))
        plan.append({"config": config_of(kind, policy, folder / f"{kind}-two", 1, tensor_parallel=2)})
    for name in ("again", "to-one"):
        plan.append({"copy": [str(folder / "pretrain-two"), str(folder / f"pretrain-{name}")]})
    place = folder / "pretrain-again"
    config = config_of("pretrain", policy, place, 1, tensor_parallel=2)
    plan.append({"config": config, "resume": str(place / "checkpoint-2")})
    results = several(plan, folder)
    assert not [part["error"] for part in results if part and part["error"]]
    place = folder / "pretrain-to-one"
    run(parse_config(config_of("pretrain", policy, place, 1)), resume=str(place / "checkpoint-2"))
    return folder, [part["engine"] for part in results if part]


@pytest.mark.slow  # trains
@pytest.mark.parametrize("kind", KINDS)
def test_layers_over_two_processes_do_what_one_does(runs, kind):
    folder, engines = runs
    assert engines[KINDS.index(kind)].startswith("tensor parallel over 2 processes: ")
    assert apart(folder / f"{kind}-one", folder / f"{kind}-two") < 2e-4
    losses = [
        [line[name] for line in ending(folder / f"{kind}-{which}")[1] for name in line if "loss" in name]
        for which in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(runs):
    folder, _ = runs
    weights, lines, _ = ending(folder / "pretrain-two")
    again, same_lines, _ = ending(folder / "pretrain-again")
    assert all(weights[name].equal(again[name]) for name in weights) and lines == same_lines


@pytest.mark.slow
def test_a_checkpoint_is_read_by_one_process(runs):
    folder, _ = runs
    assert apart(folder / "pretrain-one", folder / "pretrain-to-one") < 2e-4


SOURCE = {"policy_checkpoint": "run", "datasets": ["rows.jsonl"], "tensor_parallel": 2}


@pytest.mark.parametrize(
    "kind, changes, reason",
    [
        (SFTConfig, {"adapter": "lora"}, "does not work with an adapter"),
        (SFTConfig, {"devices": 3}, "`devices` x `nodes` is 3, and all of them"),
        (SFTConfig, {"parallel": "zero3"}, 'does not work with `parallel` "zero3"'),
        (GRPOConfig, {"reward_model": "length"}, "every process answers prompts of its own"),
    ],
)
def test_what_a_config_cannot_have_beside_it(kind, changes, reason):
    with pytest.raises(LabError, match=reason):
        parse_config({"kind": kind.KIND, **SOURCE, **changes})


class Unplanned(nn.Module):
    tp_plan = None


@pytest.mark.parametrize(
    "model, reason",
    [
        (Unplanned(), "declares no plan"),
        (small_model(n_heads=4, n_kv_heads=1), "the 1 key/value heads"),
        (small_model(positional_encoding="alibi"), "alibi's bias"),
        (small_model(dropout=0.1), "would drop different ones"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(model, reason):
    with pytest.raises(LabError, match=reason):
        divide_layers(model, 2, "cpu")

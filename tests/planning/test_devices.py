"""Plans for several devices: what each holds under every engine, which engine is chosen, what would make it
fit.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

from llmlab.config import DualHeadConfig, GRPOConfig, PretrainConfig, SFTConfig, preset
from llmlab.config.loader import apply_changes
from llmlab.hardware import visible_devices
from llmlab.models import LabForCausalLM
from llmlab.models.transformer.shapes import to_lab_config
from llmlab.planning import advice, engines, live, needs
from llmlab.planning.advice import HostTooSmall, concerns, ways_to_fit
from llmlab.planning.engines import AUTOMATIC, Choice, choose_engine, need_in_effect
from llmlab.planning.needs import needs_of
from llmlab.planning.plan import make_plan
from llmlab.planning.processes import local_processes_of, processes_of
from llmlab.planning.sharding import STANDING, on_a_device
from llmlab.planning.step import Held
from llmlab.ui.plan import forecast_lines, live_figures, plan_rows

GB = 1 << 30
SMALL = dict(model=preset("small"), device="cpu")


@pytest.fixture
def gpus(monkeypatch):
    """Makes plans for GPUs with so many free bytes each, in a machine with so many of its own."""

    def here(free, host=1 << 50):
        for module in (live, needs, advice):
            monkeypatch.setattr(module, "on_gpu", lambda config: True)
        monkeypatch.setattr(engines, "device_memory", lambda config: free)
        monkeypatch.setattr(engines, "host_memory", lambda: host)

    return here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    LabForCausalLM(to_lab_config(preset("tiny"))).save_pretrained(folder)
    return str(folder)


def test_processes_are_those_of_the_config_or_those_that_were_started(monkeypatch):
    config = PretrainConfig(**SMALL, devices=4, nodes=2)
    assert (processes_of(config), local_processes_of(config)) == (8, 4)
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert (processes_of(config), local_processes_of(config)) == (6, 3)


def test_the_fullest_of_the_visible_devices_counts():
    said = "0, GPU-aa11, 100\n1, GPU-bb22, 40\n2, GPU-cc33, 70\n"
    mib = [free >> 20 for free in visible_devices(said, None)]
    assert mib == [100, 40, 70]
    assert [free >> 20 for free in visible_devices(said, "2,0")] == [70, 100]
    assert [free >> 20 for free in visible_devices(said, "GPU-bb")] == [40]
    assert visible_devices(said, "7") == ()
    with pytest.raises(ValueError):
        visible_devices("No devices were found", None)


def test_processes_without_gpus_share_the_memory_of_the_machine():
    one, four = (PretrainConfig(**SMALL, devices=count) for count in (1, 4))
    assert live.device_memory(four) == pytest.approx(live.device_memory(one) / 4, rel=0.1)


@pytest.mark.parametrize(
    "engine, devices, published",
    [("zero2", 64, 16.6), ("zero3", 64, 1.9), ("zero2", 4, 41.3), ("zero3", 4, 30.0)],
)
def test_what_stands_is_that_of_the_paper(engine, devices, published):
    """Rajbhandari et al. 2020, table 1: 7.5B weights in half precision under Adam, GB; the gradients, which
    the lab sums in fp32, take 2 bytes more.
    """
    standing = STANDING[engine](Held(7.5e9, 2.0, wide=2), devices, False)
    stands = standing.weights + standing.gradients + standing.optimizer
    assert (stands - 2 * 7.5e9 / devices) / 1e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_more_devices_hold_less_and_offload_moves_it(engine):
    held = Held(1e9, 2.0, wide=2)
    totals = [
        one.weights + one.gradients + one.optimizer
        for one in (STANDING[engine](held, count, False) for count in (2, 4, 8))
    ]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    there, moved = (STANDING[engine](held, 4, offload) for offload in (False, True))
    kept = there.weights + there.gradients + there.optimizer
    assert moved.weights + moved.gradients + moved.optimizer < kept
    assert moved.host >= kept - (held.wide * held.trained if engine == "zero2" else 0) - 1e-6


def test_quantised_weights_and_reward_models_are_not_divided(checkpoint):
    config = GRPOConfig(policy_checkpoint=checkpoint, reward_model=checkpoint, beta=0.1, precision="fp32")
    shape_bytes = 4 * needs_of(config).held.trained
    held = needs_of(config).held
    assert held.fixed == held.reference == shape_bytes
    many = STANDING["fsdp2"](held, 1000, False)
    assert many.weights == pytest.approx(held.fixed, rel=0.01)
    lora, qlora = (
        needs_of(SFTConfig(policy_checkpoint=checkpoint, adapter=adapter)).held
        for adapter in ("lora", "qlora")
    )
    assert lora.fixed == 0 < lora.frozen and 0 < qlora.fixed < lora.frozen


def test_ddp_holds_the_gradients_twice():
    needed = needs_of(PretrainConfig(**SMALL))
    alone, shared = (on_a_device(needed, engine, 2).device for engine in ("none", "ddp"))
    assert shared.total - alone.total == alone.exchange + alone.gradients


@pytest.mark.parametrize(
    "free, engine, why",
    [
        (1 << 50, "ddp", "least that fits"),
        (38 * GB, "fsdp2", "least that fits"),
        (GB, "fsdp2", "nothing fits"),
    ],
)
def test_the_least_sharding_that_fits(gpus, free, engine, why):
    gpus(free)
    config = PretrainConfig(model=preset("llama-7b"), devices=8, gradient_checkpointing=True)
    choice = choose_engine(config, devices=8)
    assert (choice.engine, choice.why) == (engine, why)
    assert choice.need is not None and choice.need.fits == (why == "least that fits")
    assert [need.engine for need in choice.looked_at] == ["ddp", "fsdp2", "zero2", "zero3"]


def test_without_gpus_nothing_is_divided_unasked():
    choice = choose_engine(PretrainConfig(model=preset("llama-7b"), device="cpu"), devices=2)
    assert (choice.engine, choice.why) == ("ddp", "no GPUs") and choice.need.engine == "ddp"


def test_an_engine_is_one_that_the_run_can_use(checkpoint, gpus):
    gpus(1)
    dual = DualHeadConfig(backbone=checkpoint, devices=2)
    assert {need.engine for need in choose_engine(dual, devices=2).looked_at} == set(AUTOMATIC)
    assert choose_engine(PretrainConfig(**SMALL, optimizer="sophia"), devices=2).engine == "ddp"
    asked = choose_engine(PretrainConfig(**SMALL, parallel="zero3"), devices=2)
    assert (asked.engine, asked.why, asked.need.engine) == ("zero3", "asked for", "zero3")
    assert choose_engine(PretrainConfig(**SMALL, parallel="zero3"), devices=1).engine == "none"
    unknown = SFTConfig(policy_checkpoint="nobody/knows-this")
    assert choose_engine(unknown, devices=2) == Choice("ddp", "not known")


def test_what_would_fit_shards_offloads_and_takes_more_devices(gpus):
    gpus(60 * GB)
    config = PretrainConfig(
        model=preset("llama-7b"), devices=2, parallel="ddp", gradient_accumulation_steps=16
    )
    ways = ways_to_fit(config)
    assert {"parallel": "fsdp2", "cpu_offload": True} in [
        {name: way.changes[name] for name in ("parallel", "cpu_offload") if name in way.changes}
        for way in ways
    ]
    assert any(way.changes.get("devices") == 4 for way in ways)
    for way in ways:
        changed = apply_changes(config, way.changes)
        assert need_in_effect(changed).total == way.total < 60 * GB
        batch = make_plan(changed).schedule.effective_batch
        assert batch == make_plan(config).schedule.effective_batch == 32
    gpus(60 * GB, host=GB)
    offloaded = apply_changes(config, {"parallel": "fsdp2", "cpu_offload": True})
    assert any(isinstance(concern, HostTooSmall) for concern in concerns(offloaded))
    assert need_in_effect(offloaded).verdict == "does not fit"


def test_what_is_said(gpus):
    gpus(60 * GB)
    config = PretrainConfig(model=preset("llama-7b"), devices=4, nodes=2)
    said = dict(plan_rows(make_plan(config)))
    assert said["engine"] == "fsdp2 over 8 processes: the least sharding that fits"
    assert "does not fit: " in said["  ddp"] and said["  ddp"].endswith("too much")
    assert "fits" in said["  zero3"] and said["effective batch"].startswith("1 x 64 x 8 = 512")
    assert "memory" not in said and said["memory per device"].startswith("about ")
    assert any(line.startswith("engine: fsdp2 over 8") for line, _ in forecast_lines(make_plan(config)))
    assert "a device with fsdp2" in "\n".join(live_figures(config))
    assert "512 rows an update" in live_figures(config)[0]
    alone = dict(plan_rows(make_plan(PretrainConfig(**SMALL))))
    assert "engine" not in alone and "  ddp" not in alone


@pytest.mark.slow
def test_two_processes_hold_what_is_predicted(tmp_path):
    path = Path(__file__).parent.parent.parent / "benchmarks" / "memory_devices.py"
    spec = importlib.util.spec_from_file_location("memory_devices", path)
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    spec.loader.exec_module(benchmark)
    counted = benchmark.measure("fsdp2-tiny", str(tmp_path))
    predicted = benchmark.predicted("fsdp2-tiny", str(tmp_path))
    for part in ("weights", "optimizer", "standing"):
        assert counted[part] == pytest.approx(predicted[part], rel=0.001), part
    assert counted["peak"] == pytest.approx(predicted["peak"], rel=0.15)

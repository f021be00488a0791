"""How long a run is: steps, tokens, passes and seconds, from FLOPs, then from what runs here took."""

import dataclasses
import json

import pytest

from llmlab.config import DPOConfig, GRPOConfig, PPOConfig, PretrainConfig, SFTConfig, apply_changes
from llmlab.config.loader import kind_class
from llmlab.planning import speed
from llmlab.planning.advice import (
    BeyondContext,
    LongRun,
    NeverValidated,
    TooManyPasses,
    concerns,
    concerns_about,
    time_concerns,
)
from llmlab.planning.data_size import data_size
from llmlab.planning.duration import WRITTEN, DataSize, time_plan
from llmlab.planning.measured import peak_on_device, steps_to_measure
from llmlab.planning.memory import one_checkpoint_bytes
from llmlab.planning.speed import Pace, SpeedRecord, measured_update, pace_of, record, setting_of
from llmlab.planning.work import work_of
from llmlab.training.registry import STAGES
from llmlab.ui.forms import Form, FormState
from llmlab.ui.plan import in_words, live_figures, time_rows

TINY = dict(
    kind="model",
    tokenizer_name="byte",
    max_seq_len=64,
    vocab_size=512,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=128,
)
BASE = dict(model=TINY, datasets=["llmlab:moby-dick"], batch_size=4, gradient_accumulation_steps=2)


@pytest.fixture
def own_records(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))


def took(config, update, **facts):
    work = work_of(config)
    known = dict(zip(("expected", "peak"), speed.expected(config, work), strict=True))
    facts = {"saving": 0.0, **known, **facts}
    record(config, SpeedRecord(setting_of(config), update, work.tokens, work.flops, **facts))


def test_flops_of_an_update_are_those_of_its_passes():
    full = work_of(PretrainConfig(**BASE))
    assert full.tokens == 4 * 2 * 64
    shape = speed.start_shape(PretrainConfig(**BASE))
    dense = shape.in_matrices + shape.vocabulary * shape.width
    assert full.flops == pytest.approx(full.tokens * (6 * dense + 12 * 2 * 64 * 65 / 2))
    again = work_of(PretrainConfig(**BASE, gradient_checkpointing=True))
    assert again.flops == pytest.approx(full.flops * 4 / 3)
    model = "Qwen/Qwen2.5-0.5B"
    sft, lora = (work_of(SFTConfig(policy_checkpoint=model, adapter=adapter)) for adapter in ("none", "lora"))
    assert 2 / 3 < lora.flops / sft.flops < 0.75, "no gradients of the frozen weights"
    half = work_of(SFTConfig(policy_checkpoint=model), row=512)
    assert half.tokens == sft.tokens / 2 and half.flops < sft.flops / 2
    dpo, live = (
        work_of(DPOConfig(policy_checkpoint=model, reference=reference))
        for reference in ("sequential", "live")
    )
    assert live.flops == pytest.approx(dpo.flops * 4 / 3) and dpo.tokens == 128 * 2 * 1024


def test_answers_are_generated_once_for_all_updates_on_them():
    model = "Qwen/Qwen2.5-0.5B"
    once, often = (
        work_of(GRPOConfig(policy_checkpoint=model, beta=0.0, iterations=times)) for times in (1, 4)
    )
    assert once.answers == 128 and often.answers == 32 and often.flops < once.flops
    ppo = PPOConfig(policy_checkpoint=model)
    assert work_of(ppo).answers == 128 / 16 and steps_to_measure(ppo) == 32
    assert steps_to_measure(GRPOConfig(policy_checkpoint=model)) == 8


def test_the_measured_peak_of_a_gpu_is_its_own_not_that_of_the_process(tmp_path):
    file = tmp_path / "run.json"
    assert peak_on_device(file) == 0
    for memory, peak in (({"place": "GPU", "measured": 7}, 7), ({"place": "process", "measured": 7}, 0)):
        file.write_text(json.dumps({"summary": {"memory": memory}}))
        assert peak_on_device(file) == peak


def test_an_estimate_becomes_a_measurement(own_records):
    config = PretrainConfig(**BASE, max_steps=100, eval_fraction=0.0)
    first = pace_of(config)
    assert (
        first.basis == "flops"
        and first.update > 0
        and "estimated from FLOPs" in dict(time_rows(time_plan(config)))["time"]
    )
    took(config, 2.0, validation=5.0, start=1.0)
    known = time_plan(config)
    assert known.pace.basis == "measured" and known.seconds == 200 and known.tokens == 100 * 4 * 2 * 64
    # neither the length of the run nor where it goes changes the time of an update
    for changes in ({"max_steps": 7}, {"output_dir": "x"}, {"learning_rate": 1e-5}, {"seed": 1}):
        assert pace_of(apply_changes(config, changes)).basis == "measured"
    other = pace_of(apply_changes(config, {"batch_size": 8}))
    assert other.basis == "similar" and 2.2 < other.update < 4.1, "a part of it does not grow with the rows"
    assert pace_of(apply_changes(config, {"precision": "bf16"})).basis == "flops"
    took(config, 3.0)
    assert pace_of(config).update == 3.0, "the newest counts"


def test_one_measurement_scales_all_parts_of_an_update(own_records):
    """Adapters, dropout and the optimizer take a time that FLOPs alone do not tell."""
    shared = dict(policy_checkpoint="Qwen/Qwen2.5-0.5B", max_length=256, eval_fraction=0.0)
    whole, lora = (SFTConfig(**shared, adapter=adapter) for adapter in ("none", "lora"))
    without = apply_changes(lora, {"lora_dropout": 0.0})
    before = [pace_of(config).update for config in (whole, lora, without)]
    assert before[2] < before[1], "dropout draws a number for each value"
    took(whole, 3 * before[0])
    after = [pace_of(config) for config in (whole, lora, without)]
    assert [pace.basis for pace in after] == ["measured", "similar", "similar"]
    for pace, first in zip(after, before, strict=True):  # the peak is measured once in a process
        assert pace.update == pytest.approx(3 * first, rel=0.05)
    record_file = speed._file(speed._device_of(lora))
    record_file.unlink()
    took(whole, 300.0, expected=None, peak=None)  # as records of before were
    assert pace_of(lora).basis == "flops", "FLOPs alone tell less than the formula of a processor"


def test_checkpoints_are_counted(own_records):
    config = PretrainConfig(**BASE, max_steps=100, eval_fraction=0.0, save_every=40)
    each = pace_of(config).update
    bytes_ = one_checkpoint_bytes(config)
    assert time_plan(config).seconds == pytest.approx(100 * each + 3 * bytes_ / WRITTEN)
    took(config, 1.0, saving=2.0)
    assert time_plan(config).seconds == pytest.approx(106)


def test_damaged_records_do_not_matter(own_records):
    config = PretrainConfig(**BASE)
    took(config, 2.0)
    file = speed._file(speed._device_of(config))
    file.write_text('{"update": 1}\nno json\n' + file.read_text() + '{"setting"')
    assert pace_of(config).update == 2.0
    took(config, 4.0)
    assert len(file.read_text().splitlines()) == 2, "what cannot be read is not kept"
    file.write_bytes(b"\xff\xfe")
    assert pace_of(config).basis == "flops"


def test_the_first_updates_and_those_that_were_held_up_do_not_count():
    config = PretrainConfig(**BASE)
    assert measured_update(config, [9.0]) is None and measured_update(config, [9.0, 1.0, 2.0]) == 1.5
    assert measured_update(config, [9.0, 1.0, 1.0, 50.0, 1.0, 1.0]) == 1.0
    grpo = GRPOConfig(iterations=2)  # answers are generated in every second update
    assert measured_update(grpo, [9.0, 1.0, 5.0, 1.0, 5.0]) == 3.0


def test_validations_are_counted():
    without = PretrainConfig(**BASE, max_steps=100, eval_fraction=0.0)
    validating = apply_changes(without, {"eval_fraction": 0.1, "eval_rows": 80})
    each = time_plan(without).seconds / 100
    assert time_plan(validating).seconds == pytest.approx(each * (100 + 5 * 80 / 8 / 3), rel=0.2)


def test_passes_and_steps_follow_from_the_rows():
    data = DataSize(800, 800 * 64)
    assert time_plan(PretrainConfig(**BASE, max_steps=1000), data).passes == 10
    epochs = time_plan(PretrainConfig(**BASE, epochs=2.5), data)
    assert epochs.steps == 250 and epochs.passes == 2.5
    assert time_plan(PretrainConfig(**BASE, epochs=2)).steps is None
    grpo = GRPOConfig(policy_checkpoint="Qwen/Qwen2.5-0.5B", epochs=1, group_size=8)
    assert time_plan(grpo, DataSize(160)).steps == 10 * 4


@pytest.mark.slow
def test_data_is_counted_like_a_run_counts_it():
    config = PretrainConfig(**BASE, eval_fraction=0.02)
    about = data_size(config, STAGES["pretrain"].shapes)
    assert about.tokens == pytest.approx(1_168_980, rel=0.03), "what a run of it says in run.json"
    assert about.rows == pytest.approx(1_168_980 / 64, rel=0.03)


def test_money_follows_from_a_price():
    config = PretrainConfig(**BASE, max_steps=100, price_per_hour=2.5)
    plan = time_plan(config)
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 2.5) and "cost" in dict(time_rows(plan))
    assert "cost" in live_figures(config)[-1]
    assert time_plan(PretrainConfig(**BASE)).cost is None
    assert PretrainConfig.options()["price_per_hour"].resume == "silent"


def test_what_is_unusual_about_the_length_is_said():
    config = PretrainConfig(**BASE, max_steps=1000)
    long = dataclasses.replace(time_plan(config, DataSize(800)), seconds=3 * 86_400.0)
    assert time_concerns(config, long) == [TooManyPasses(10.0), LongRun(259_200.0)]
    assert in_words(LongRun(259_200.0)) == "about 3 days on this device"
    assert "10 passes" in in_words(TooManyPasses(10.0))
    never = PretrainConfig(**BASE, max_steps=1000, eval_every=5000)
    assert NeverValidated("eval_every", 5000, 1000) in time_concerns(never, time_plan(never))
    assert not time_concerns(config, time_plan(config)), "the default interval follows the length"
    sft = SFTConfig(policy_checkpoint="openai-community/gpt2", max_length=2048)
    assert BeyondContext(2048, 1024) in concerns(sft) and BeyondContext(2048, 1024) in concerns_about(
        sft, "max_length"
    )
    assert not concerns_about(sft, "batch_size")
    grpo = GRPOConfig(policy_checkpoint="openai-community/gpt2", max_new_tokens=1000)
    assert "max_new_tokens" in in_words(concerns(grpo)[0])


def test_a_form_warns_at_the_question():
    values = SFTConfig(policy_checkpoint="openai-community/gpt2").model_dump()
    form = Form(FormState(SFTConfig, values), None)
    assert "positions" in form.below("max_length", "4096") and "positions" not in form.below(
        "max_length", "512"
    )
    assert "positions" not in form.below("batch_size", "4")
    assert "time about " in form.below("max_steps", "100")


def test_intervals_follow_short_runs_unless_they_were_set():
    config = SFTConfig(max_steps=200)
    assert (config.eval_interval, config.save_interval) == (50, 50) and config.eval_every == 500
    assert SFTConfig(max_steps=5).eval_interval == 10
    assert SFTConfig(max_steps=10_000).save_interval == 500
    assert SFTConfig(max_steps=200, eval_every=150, save_every=7).eval_interval == 150
    assert SFTConfig(max_steps=200, save_every=7).save_interval == 7
    counted = SFTConfig(epochs=1)
    assert (
        counted.eval_interval == 500 and apply_changes(counted, counted.at_length(640, 1)).eval_interval == 10
    )


def test_epochs_warmup_and_patience_are_options_of_every_training():
    for stage in STAGES:
        cls = kind_class(stage)
        data = {"datasets": ["llmlab:moby-dick"]}
        config = cls(**data, epochs=2, warmup_ratio=0.1, patience=3)
        assert config.at_length(100, 1)["max_steps"] >= 2 and config.patience == 3
    with pytest.raises(ValueError, match="nothing is held out"):
        SFTConfig(patience=2, eval_fraction=0.0)


def test_a_pace_says_its_speed():
    assert Pace(2.0, 100.0, "measured").speed == 50
    missing = PretrainConfig(**{**BASE, "datasets": ["nobody/nothing"]})
    assert data_size(missing, ("text",)) is None

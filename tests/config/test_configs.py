"""Configs: one clear message for every mistake, aliases, files, presets."""

import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llmlab.cli.options import load
from llmlab.config import (
    KINDS,
    METHOD_PRESETS,
    MODEL_PRESETS,
    GRPOConfig,
    SFTConfig,
    apply_changes,
    load_config,
    loader,
    parse_config,
    preset,
    save_config,
    schema,
)
from llmlab.errors import LabError
from llmlab.ui.configs import configs_table


def message(data):
    with pytest.raises(LabError) as caught:
        parse_config(data)
    return str(caught.value)


@pytest.mark.parametrize(
    "data, expected",
    [
        (
            {"kind": "model", "d_model": 900},
            "`d_model` 900 is not divisible by `n_heads` 14: use 896 or 924, since a rope head size must be "
            "even",
        ),
        (
            {"kind": "model", "d_model": 910},
            "gives a head size of 65, and a rope head size must be even: use 896 or 924",
        ),
        ({"kind": "model", "n_heads": 0}, "`n_heads` 0 must be at least 1: use 1"),
        ({"kind": "model", "n_kv_heads": 3}, "`n_kv_heads` 3 does not divide `n_heads` 14: use 1 or 2"),
        ({"kind": "model", "d_modle": 896}, "unknown option `d_modle`: did you mean `d_model`?"),
        ({"kind": "model", "activation": "gelou"}, "did you mean gelu?"),
        ({"kind": "model", "dropout": "x"}, "`dropout` 'x' (str) is not a number"),
        ({"kind": "model", "d_model": 896.5}, "is not a whole number"),
        (
            {"kind": "model", "positional_encoding": "alibi", "rope_theta": 5.0},
            "applies only when `positional_encoding` is rope or yarn",
        ),
        ({"kind": "pretrain", "lr": 1e-3, "learning_rate": 1e-3}, "another name"),
        (
            {"kind": "pretrain", "warmup_steps": 50, "max_steps": 10},
            "`warmup_steps` 50 is above `max_steps` 10: use at most 10",
        ),
        ({"kind": "pretrain", "datasets": ["a | b | x"]}, "the weight 'x'"),
        ({"kind": "pretrain", "datasets": []}, "`datasets`"),
        ({"kind": "pretrain", "model": {"kind": "model", "d_model": 900}}, "use 896 or 924"),
        (
            {"kind": "dpo", "mini_batch_size": 30},
            "`mini_batch_size` 30 does not divide `batch_size` 128: use 32",
        ),
        ({"kind": "dpo", "list[": None}, "unknown option `list[`"),
        ({"kind": "dqo"}, "did you mean 'dpo'?"),
        ({"d_model": 4}, "`kind` is missing"),
        ({"kind": "model", "schema_version": 99}, "`schema_version` 99 is not known"),
        ([1], "a config is a JSON object"),
    ],
)
def test_one_clear_message(data, expected):
    text = message(data)
    assert expected in text
    assert "\n" not in text


def test_aliases_are_written_under_their_own_name(tmp_path):
    config = parse_config({"kind": "pretrain", "lr": 0.5, "grad_clip": 2.0})
    assert (config.learning_rate, config.max_grad_norm) == (0.5, 2.0)
    assert parse_config({"kind": "dpo", "clip_range": 0.4}).beta == 0.4
    saved = json.loads(save_config(config, tmp_path / "c.json").read_text())
    assert saved["learning_rate"] == 0.5 and "lr" not in saved


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_survive_the_disk(kind, tmp_path):
    config = KINDS[kind]()
    assert load_config(save_config(config, tmp_path / "c.json")) == config


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_says_what_it_is(kind):
    for name, info in KINDS[kind].options().items():
        if name in ("kind", "schema_version"):
            continue
        assert info.title and info.description.endswith((".", "`.")), name
    properties = schema(kind)["properties"]
    assert all(
        "description" in properties[name] for name in properties if name not in ("kind", "schema_version")
    )


def test_every_choice_has_advice():
    for cls in KINDS.values():
        for name, field in cls.model_fields.items():
            choices = getattr(field.annotation, "__args__", ())
            if (
                name not in ("kind", "schema_version")
                and choices
                and all(isinstance(choice, str) for choice in choices)
            ):
                assert set(cls.options()[name].choices) == set(choices), name


def test_shipped_configs_are_the_presets(request):
    folder = request.config.rootpath / "model_configs"
    assert load_config(folder / "model.json") == KINDS["model"]()
    for name in MODEL_PRESETS:
        assert load_config(folder / f"{name}.json") == preset(name)


def test_a_change_drops_what_no_longer_applies():
    changed = apply_changes(preset("qwen2.5-0.5b"), {"positional_encoding": "alibi"})
    assert changed.positional_encoding == "alibi"
    with pytest.raises(LabError, match="rope_theta"):
        apply_changes(preset("qwen2.5-0.5b"), {"positional_encoding": "alibi", "rope_theta": 7.0})


def test_files_that_are_no_configs(tmp_path):
    whole = json.dumps({"kind": "model"}, indent=2)
    for content, expected in [
        (whole[:8].encode(), "not valid JSON"),
        (b"\x80\x81", "is not UTF-8 text"),
        (b"[" * 100_000, "JSON|deep"),
    ]:
        file = tmp_path / "c.json"
        file.write_bytes(content)
        with pytest.raises(LabError, match=expected):
            load_config(file)
    with pytest.raises(LabError, match="no such config"):
        load_config(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = save_config(preset("tiny"), tmp_path / "c.json")
    before = file.read_text()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(LabError, match="No space left"):
        save_config(preset("small"), file)
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_anything_gives_a_config_or_a_message(kind, data):
    names = st.sampled_from(sorted(KINDS[kind].model_fields)) | st.text(max_size=8)
    raw = data.draw(st.dictionaries(names, json_values, max_size=4))
    try:
        parse_config({**raw, "kind": kind})
    except LabError as error:
        assert str(error)


def test_the_docs_page_is_current(request):
    from llmlab.config.docs import options_page

    assert (request.config.rootpath / "docs" / "options.md").read_text() == options_page()


def test_defaults_that_follow_from_others_still_follow():
    assert apply_changes(SFTConfig(), {"max_steps": 60}).warmup_steps == 6
    with pytest.raises(LabError, match="`warmup_steps` 100 is above `max_steps` 60"):
        apply_changes(SFTConfig(warmup_steps=100), {"max_steps": 60})


def test_an_older_schema_is_migrated_and_told(tmp_path, monkeypatch, capsys):
    def from_zero(data):
        data["learning_rate"] = data.pop("rate")
        return data, ["`rate` is `learning_rate` now"]

    monkeypatch.setitem(loader.MIGRATIONS, 0, from_zero)
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"kind": "sft", "schema_version": 0, "rate": 0.25}))
    config = load_config(path)
    assert (
        config.learning_rate == 0.25
        and config.migrated == "schema 0 was read as schema 1: `rate` is `learning_rate` now"
    )
    assert load(path, None).learning_rate == 0.25 and config.migrated in capsys.readouterr().err
    table = Console(record=True, width=200, file=io.StringIO())
    table.print(configs_table([path]))
    assert "schema 0 was read as schema 1" in table.export_text()
    assert 'schema_version": 0' in path.read_text()  # the file is the person's: it changes when they save it
    again = load_config(save_config(config, path))
    assert again.to_json_dict() == config.to_json_dict() and not again.migrated


def test_names_that_other_tools_use_are_aliases():
    assert GRPOConfig(reward_model_name="exact_match", grpo_beta=0.05).reward_model[0].name == "exact_match"
    assert GRPOConfig(grpo_beta=0.05).beta == 0.05


@pytest.mark.parametrize("kind", sorted(METHOD_PRESETS))
def test_the_help_does_not_speak_against_the_presets(kind):
    """The rate of a preset lies within what the option calls typical."""
    info = KINDS[kind].options()["learning_rate"]
    rates = [float(number) for number in re.findall(r"\d[\d.]*e-\d+", info.typical)]
    for size, values in METHOD_PRESETS[kind].items():
        if rates and "learning_rate" in values:
            within = rates[2:] if values.get("adapter") and len(rates) == 4 else rates
            assert min(within) <= values["learning_rate"] <= max(within), size


def test_options_of_a_checkpoint_are_compared_under_todays_names():
    assert SFTConfig(overlong="drop").on_overflow == "drop"
    assert SFTConfig.with_current_names({"overlong": "drop", "seed": 1}) == {"on_overflow": "drop", "seed": 1}

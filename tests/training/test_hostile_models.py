"""Model folders that somebody sent: what their files ask for is looked at before a library does it."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from llmlab.errors import LabError
from llmlab.models.limits import bounded_generation, check_adapter
from llmlab.models.load import load_model, load_scorer
from tests.fuzzing import Hostile, nested
from tests.waiting import PATIENCE


@pytest.fixture
def model(base_run, tmp_path):
    """A copy of a model's folder."""
    return shutil.copytree(base_run.model, tmp_path / "model")


@pytest.fixture(scope="module")
def whole_adapter(base_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    made = get_peft_model(
        load_model(str(base_run.model))[0], LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    made.save_pretrained(folder)
    load_model(str(base_run.model))[1].save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(whole_adapter, tmp_path):
    return shutil.copytree(whole_adapter, tmp_path / "adapter")


def change(file, **entries):
    about = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**about, **entries}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize(
    "content", [nested(100_000), nested(100_000, "{}"), "[1]", "", "\x00", '{"a": ' + "9" * 9000 + "}"]
)
def test_json_that_no_model_has(model, name, content):
    (model / name).write_text(content)
    for load in (load_model, load_scorer):
        with pytest.raises(LabError, match=name) as caught:
            load(str(model))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"n_layers": 10**9}, "`n_layers` is 1000000000"),
        ({"max_seq_len": "x"}, "'x', not a size"),
        ({"d_ff": -1}, "`d_ff` is -1, not a size"),
        ({"vocab_size": 1e300}, "not a size"),
    ],
)
def test_sizes_that_no_model_has(model, entries, message):
    change(model / "config.json", **entries)
    with pytest.raises(LabError, match=message):
        load_model(str(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "entries, message",
    [
        ({"target_modules": "(a+)+$|(.*)*\\1x|([a-z_.]+)+!"}, "`target_modules` .* takes too long to match"),
        ({"target_modules": "(("}, "`target_modules` .* is not a pattern"),
        ({"target_modules": "a" * 20_000}, "is not a pattern"),
        ({"exclude_modules": "([a-z_.0-9]+)+!"}, "`exclude_modules` .* takes too long"),
        ({"rank_pattern": {"([a-z_.0-9]+)+!": 4}}, "`rank_pattern` .* takes too long"),
        ({"modules_to_save": ["([a-z_.0-9]+)+!"]}, "`modules_to_save` .* takes too long"),
        ({"r": 10**6}, "`r` 1,000,000 is more than its weights have"),
        ({"rank_pattern": {"q_proj": 10**9}}, "`rank_pattern` 1,000,000,000"),
        ({"target_modules": [f"m{i}" for i in range(20_000)]}, "names 20,0.. modules"),
    ],
)
def test_what_an_adapter_asks_of_its_base(adapter, entries, message):
    change(adapter / "adapter_config.json", **entries)
    for load in (load_model, load_scorer) if "r" in entries else (load_model,):
        with pytest.raises(LabError, match=message):
            load(str(adapter))


def test_a_tokenizer_without_a_length(model):
    change(model / "tokenizer_config.json", model_max_length="[/]")
    with pytest.raises(LabError, match=r"`model_max_length` is '\[/\]', not a number"):
        load_model(str(model))


def test_an_adapter_as_peft_writes_it_is_left_alone(adapter):
    model, _ = load_model(str(adapter))
    check_adapter(adapter, [name for name, _ in model.named_modules()])
    change(adapter / "adapter_config.json", target_modules=r".*\.(q|k)_proj")
    check_adapter(adapter, ["model.layers.0.q_proj"])


def test_a_million_beams_are_not_searched_with(model):
    change(
        model / "generation_config.json",
        num_beams=10**6,
        num_return_sequences=10**6,
        max_time=1e9,
        top_k=20,
        temperature=0.5,
        do_sample=True,
        eos_token_id=[3, 4],
        sequence_bias=[[[1], 9.0]],
        penalty_alpha=0.6,
    )
    found = load_model(str(model))[0].generation_config
    assert (
        found.num_beams in (None, 1)
        and not found.sequence_bias
        and not found.penalty_alpha
        and not found.max_time
    )
    assert (found.top_k, found.temperature, found.do_sample) == (20, 0.5, True) and {3, 4} <= set(
        found.eos_token_id
    )
    own = GenerationConfig(
        num_beams=4, length_penalty=2.0, no_repeat_ngram_size=3, forced_bos_token_id=0, max_length=142
    )
    assert bounded_generation(own).to_diff_dict() == own.to_diff_dict(), "what models in use have is kept"


@pytest.mark.parametrize(
    "also", ["other.safetensors", "model.safetensors", "adapter_model.safetensors.index.json", ""]
)
def test_an_adapter_in_a_pickle_is_refused_whatever_lies_beside_it(
    adapter, base_run, tmp_path, monkeypatch, also
):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    if also:
        shutil.copy(base_run.model / "model.safetensors", adapter / also)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    for load in (load_model, load_scorer):
        with pytest.raises(
            LabError,
            match=r"pickle \(adapter_model.bin\), which can run code when it is read: it was not opened",
        ):
            load(str(adapter))
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_weights_are_not_opened(adapter, model, tmp_path, monkeypatch):
    for folder, name in ((adapter, "adapter_model.bin"), (model, "pytorch_model.bin"), (model, "model.bin")):
        (folder / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    assert load_model(str(adapter)) and load_model(str(model)) and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_program_says_it_in_one_line(model, tmp_path):
    """A chat template that never ends, through the program itself."""
    (model / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "llmlab", "generate", str(model), "-p", "Who?"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 2 and not done.stdout.strip() and len(done.stderr.splitlines()) == 1
    assert "this chat template ran for 1 s and was stopped" in done.stderr

"""Nothing that someone sends runs code, nothing outside a run's folder is touched,
two runs never share a folder.
"""

import json
import math
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab.config import SourceConfig, save_config
from llmlab.data.sources import load_rows
from llmlab.errors import LabError
from llmlab.models import LabForCausalLM
from llmlab.models.load import load_model
from llmlab.runs.folder import LOG, RunFolder
from llmlab.runs.manifest import MANIFEST, verify, write_manifest
from llmlab.training.engine.run import run
from llmlab.ui.reporters import RunLog
from tests.fuzzing import Hostile
from tests.training.conftest import sft_config, stopped_run
from tests.waiting import PATIENCE, until


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_does_not_run(base_run, tmp_path, monkeypatch, name):
    folder = stopped_run(base_run, tmp_path, monkeypatch)
    bad, marker = folder.checkpoints()[0].path, tmp_path / "ran"
    (bad / name).write_bytes(pickle.dumps(Hostile(marker)))
    assert verify(bad) and folder.latest_valid_checkpoint()[0].path != bad, "its seal is broken"
    write_manifest(bad, step=6)  # whoever sends files can make a manifest, too
    with pytest.raises(LabError, match=f"{name} is not a file that torch writes; it was not opened"):
        run(sft_config(base_run, tmp_path))
    assert not marker.exists()
    shutil.rmtree(bad)
    assert run(sft_config(base_run, tmp_path)).model, "the earlier checkpoint already exists"


def test_weights_in_a_pickle_are_refused_and_do_not_run(base_run, tmp_path):
    marker = tmp_path / "ran"
    alone = tmp_path / "model.pt"
    alone.write_bytes(pickle.dumps(Hostile(marker)))
    folder = tmp_path / "model"
    shutil.copytree(base_run.model, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(marker)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base_run.model)})
    )
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Hostile(marker)))
    for name in (alone, folder, adapter):
        with pytest.raises(LabError, match=r"pickle.*was not opened|is a file, not a checkpoint"):
            load_model(str(name))
    assert not marker.exists()


def test_pickles_among_data_and_in_the_cache_are_not_read(base_run, tmp_path):
    marker, data = tmp_path / "ran", tmp_path / "data"
    data.mkdir()
    (data / "rows.pkl").write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(LabError):
        load_rows(SourceConfig(name=str(data)))
    with pytest.raises(LabError):
        load_rows(SourceConfig(name=str(data / "rows.pkl")))
    assert not marker.exists()


def test_a_models_own_code_does_not_run(base_run, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(base_run.model, folder)
    about = json.loads((folder / "config.json").read_text())
    about |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(LabError, match="has custom code, which was not run"):
        load_model(str(folder))
    assert not marker.exists()


def test_manifests_and_links_never_lead_outside(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (tmp_path / "secret").write_text("s")
    write_manifest(folder)
    assert verify(folder) == ""
    whole = json.loads((folder / MANIFEST).read_text())
    for name in ("../secret", "/etc/passwd", "x/../../secret", "a\0b"):
        (folder / MANIFEST).write_text(
            json.dumps({"files": {**whole["files"], name: {"bytes": 1, "sha256": "0"}}})
        )
        assert "outside the folder" in verify(folder)
    (folder / MANIFEST).write_text(json.dumps(whole))
    (folder / "link").symlink_to(tmp_path / "secret")
    assert verify(folder) == "link is a link"
    (folder / "link").unlink()
    (folder / "optimizer.bin").write_text("")
    assert "is not in the manifest" in verify(folder)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["files", "bytes", "sha256", "a.txt", "../x", ""]), inner, max_size=3
                )
            ),
            max_leaves=8,
        )
        .map(json.dumps)
        .map(str.encode),
    )
)
def test_any_manifest_that_does_not_know_the_files_is_a_fault(tmp_path, content):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / MANIFEST).write_bytes(content)
    assert verify(tmp_path).strip()


def test_deep_manifests_and_configs_are_faults(tmp_path):
    (tmp_path / MANIFEST).write_text('{"files":' * 100_000 + "1" + "}" * 100_000)
    assert "cannot be read" in verify(tmp_path)


@pytest.mark.slow
def test_a_folder_is_held_by_one_run(base_run, tmp_path):
    path = save_config(sft_config(base_run, tmp_path, max_steps=100_000, max_length=64), tmp_path / "c.json")
    first = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: (tmp_path / "run" / ".holder.json").exists() or first.poll() is not None)
    second = subprocess.run(
        [sys.executable, "-m", "llmlab", "run", str(path)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (
        second.returncode == 2
        and f"process {first.pid} on" in second.stderr
        and "is training in this folder" in second.stderr
    )
    assert first.poll() is None
    first.kill()
    first.wait(PATIENCE)
    assert run(sft_config(base_run, tmp_path)).folder == tmp_path / "run", "a killed run holds nothing"


@pytest.mark.slow
def test_what_changes_on_resume_is_said(base_run, tmp_path, monkeypatch, told):
    folder = stopped_run(base_run, tmp_path, monkeypatch)
    with pytest.raises(
        LabError, match=r"`adapter` is \"lora\" and was \"none\" so far: that is another model"
    ):
        run(sft_config(base_run, tmp_path, adapter="lora"))
    assert folder.record["status"] == "stopped"
    result = run(
        sft_config(base_run, tmp_path, learning_rate=5e-4, max_steps=12, save_every=3), reporter=told
    )
    assert (
        "`learning_rate` 0.001 -> 0.0005: the schedule continues with it" in told.text
        and "`max_steps` 8 -> 12" in told.text
        and "save_every" not in told.text
    )
    lines = {line["step"]: line for line in RunFolder(result.folder).metrics() if "learning_rate" in line}
    assert sorted(lines) == list(range(1, 13))
    for step in (7, 8, 12):  # a line holds the rate of the update it tells of
        wanted = 5e-4 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 12))
        assert lines[step]["learning_rate"] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.slow
def test_another_optimizer_begins_anew_and_a_finished_run_can_be_made_longer(
    base_run, tmp_path, monkeypatch, told
):
    stopped_run(base_run, tmp_path, monkeypatch)
    result = run(sft_config(base_run, tmp_path, optimizer="lion"), reporter=told)
    assert "`optimizer` adamw -> lion: its state is reset" in told.text and result.model
    longer = run(sft_config(base_run, tmp_path, optimizer="lion", max_steps=11))
    assert longer.folder == result.folder and RunFolder(longer.folder).record["step"] == 11
    other = run(sft_config(base_run, tmp_path, optimizer="lion", max_steps=11))
    assert other.folder != result.folder, "a finished run is not overwritten"


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["stop", "halve"])
def test_out_of_memory(base_run, tmp_path, monkeypatch, wanted, told):
    inner, seen = LabForCausalLM.__call__, []

    def limited(self, input_ids=None, *args, **kwargs):
        seen.append(len(input_ids))
        if len(input_ids) > 4 and len(seen) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return inner(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LabForCausalLM, "__call__", limited)
    if wanted == "stop":
        with pytest.raises(LabError, match=r'out of memory.*`out_of_memory` "halve"'):
            run(sft_config(base_run, tmp_path, packing=False), reporter=RunLog())
        log = (tmp_path / "run" / LOG).read_text().splitlines()
        assert log[-1].startswith("error: ") and "out of memory" in log[-1], "the last line says why"
        return
    result = run(sft_config(base_run, tmp_path, packing=False, out_of_memory="halve"), reporter=told)
    assert "continuing with 4 x 2 x 1 = 8" in told.text
    steps = [line["step"] for line in RunFolder(result.folder).metrics() if "loss" in line]
    assert steps == list(range(1, 9)) and RunFolder(result.folder).record["config"]["batch_size"] == 4


def test_secrets_stay_out(base_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_averysecretvalue")
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "note": "hf_averysecretvalue"})
    assert "hf_averysecretvalue" not in (tmp_path / "metrics.jsonl").read_text()

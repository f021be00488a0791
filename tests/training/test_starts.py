"""Where a run begins: what a kill left, a named checkpoint, changed options, files and weights,
results that stand there.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmlab.config import SFTConfig
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder, find_model
from llmlab.runs.manifest import write_manifest
from llmlab.training.callbacks import stop as callbacks
from llmlab.training.engine import checkpointing
from llmlab.training.engine.run import run
from tests.conftest import write_rows

pytestmark = pytest.mark.slow  # trains

ROWS = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 3 else "Stubb"} for i in range(64)]


def config(base_run, folder, **changes):
    data = folder / "rows.jsonl"
    values = dict(
        policy_checkpoint=str(base_run.folder),
        datasets=[str(data) if data.exists() else write_rows(data, ROWS)],
        max_steps=8,
        learning_rate=1e-3,
        batch_size=8,
        gradient_accumulation_steps=1,
        max_length=64,
        save_every=2,
        warmup_steps=0,
        log_every=1,
        eval_fraction=0.2,
        eval_every=2,
        eval_rows=8,
        sample_tokens=0,
        output_dir=str(folder / "run"),
        report_to=[],
        packing=False,
        save_total_limit=9,
    )
    return SFTConfig(**{**values, **changes})


def stop_at(monkeypatch, step):
    """Lets a signal arrive when a run has done a step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            self.received = 15
            control.should_save = control.should_training_stop = True

    monkeypatch.setattr(callbacks.StopOnSignal, "on_step_end", on_step_end)


def killed_at(step, base_run, folder, monkeypatch, **changes):
    """A run as a kill leaves it that comes a step behind its last checkpoint."""
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        result = run(config(base_run, folder, **changes))
    RunFolder(result.folder).update(status="running")
    return RunFolder(result.folder)


def weights(folder):
    return load_file(folder / "model.safetensors")


def alike(one, other):
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def steps(folder):
    return [line["step"] for line in folder.metrics() if "loss" in line]


def test_a_kill_in_the_first_write_of_the_record_costs_nothing(base_run, tmp_path, told):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", ".holder.json", ".run.json.k2j4h5", ".best-77"):
        (folder / name).write_text("{")
    result = run(config(base_run, tmp_path, max_steps=2), reporter=told)
    assert result.folder == folder and RunFolder(folder).record["status"] == "done"
    assert "holds" not in told.text
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_kill_in_the_first_checkpoint_costs_nothing(base_run, tmp_path, monkeypatch, told):
    """The figures of its step are logged by then, which is no sign of a checkpoint that was there."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpointing, "write_manifest", killed)
        run(config(base_run, tmp_path))
    assert max(steps(RunFolder(tmp_path / "run"))) == 2
    result = run(config(base_run, tmp_path), reporter=told)
    assert result.folder == tmp_path / "run"
    assert "stopped before its first checkpoint: it starts again at step 0" in told.text
    assert steps(RunFolder(result.folder)) == list(range(1, 9))


def test_a_folder_of_something_else_is_named_as_that(base_run, tmp_path, told):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    result = run(config(base_run, tmp_path, max_steps=2), reporter=told)
    assert result.folder.name == "run-2" and "holds something else" in told.text


def test_a_second_run_of_a_finished_config_goes_on_where_it_was_killed(base_run, tmp_path, monkeypatch, told):
    run(config(base_run, tmp_path, max_steps=4))
    assert killed_at(2, base_run, tmp_path, monkeypatch, max_steps=4).path.name == "run-2"
    again = run(config(base_run, tmp_path, max_steps=4), reporter=told)
    assert again.folder.name == "run-2" and alike(tmp_path / "run" / "best", again.model)
    assert "resuming from" in told.text
    assert run(config(base_run, tmp_path, max_steps=4)).folder.name == "run-3"


def test_a_named_earlier_checkpoint_begins_a_branch_of_its_own(base_run, tmp_path, monkeypatch, told):
    whole = run(config(base_run, tmp_path, output_dir=str(tmp_path / "whole")))
    folder = killed_at(6, base_run, tmp_path, monkeypatch)
    old = weights(folder.path / "checkpoint-6")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        branch = config(base_run, tmp_path, learning_rate=3e-3)
        run(branch, resume=str(folder.path / "checkpoint-2"), reporter=told)
    aside = folder.path / "set-aside-1"
    assert "checkpoint-6, checkpoint-4, best: later than step 2, so moved to" in told.text
    assert str(aside) in told.text
    assert all(torch.equal(value, old[name]) for name, value in weights(aside / "checkpoint-6").items())
    assert [line["step"] for line in RunFolder(aside).metrics() if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-5", "checkpoint-4", "checkpoint-2"]
    end = run(branch)  # from 5, not from the 6 of the branch that was left
    assert steps(folder) == list(range(1, 9)) and not alike(
        end.folder / "checkpoint-8", whole.folder / "checkpoint-8"
    )


def test_a_branch_ends_like_a_run_that_was_never_stopped(base_run, tmp_path, monkeypatch):
    whole = run(config(base_run, tmp_path, output_dir=str(tmp_path / "whole")))
    folder = killed_at(7, base_run, tmp_path, monkeypatch)
    end = run(config(base_run, tmp_path), resume=str(folder.path / "checkpoint-4"))
    assert alike(end.model, whole.model) and alike(end.folder / "checkpoint-8", whole.folder / "checkpoint-8")
    clock = ("runtime", "per_second")
    found, wanted = (
        [
            {k: v for k, v in line.items() if not any(part in k for part in clock)}
            for line in RunFolder(path).metrics()
        ]
        for path in (folder.path, whole.folder)
    )
    assert found == wanted, "the mean training loss in the last line as well"


@pytest.mark.parametrize("ended", [False, True])
def test_a_kill_while_a_branch_is_left_brings_no_step_of_it_back(ended, base_run, tmp_path, monkeypatch):
    """Of a run that was finished as well: from then on it is not."""
    folder = killed_at(6, base_run, tmp_path, monkeypatch)
    if ended:
        run(config(base_run, tmp_path, max_steps=6))
    newest = folder.checkpoints()[0].name
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            run(config(base_run, tmp_path, max_steps=6), resume=str(folder.path / "checkpoint-2"))
    assert folder.checkpoints()[0].name == newest == "checkpoint-6" and folder.record["back_to"] == 2
    result = run(config(base_run, tmp_path, max_steps=6))
    assert result.folder == folder.path
    assert (result.folder / "set-aside-2" / "checkpoint-6").is_dir() and "back_to" not in folder.record


@pytest.mark.parametrize(
    "changes", [dict(learning_rate=2e-2), dict(optimizer="muon"), dict(weight_decay=0.5, adam_beta1=0.5)]
)
def test_a_changed_option_outlives_a_kill_before_the_next_checkpoint(
    base_run, tmp_path, monkeypatch, changes
):
    folder = killed_at(4, base_run, tmp_path, monkeypatch)
    shutil.copytree(folder.path, tmp_path / "twin")
    once = run(config(base_run, tmp_path, output_dir=str(tmp_path / "twin"), **changes))
    with monkeypatch.context() as patch:  # killed behind the change, before any checkpoint has seen it
        patch.setattr("transformers.Trainer.train", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            run(config(base_run, tmp_path, **changes))
    assert folder.record["config"] | changes == folder.record["config"]
    twice = run(config(base_run, tmp_path, **changes))
    assert twice.folder == folder.path and alike(once.model, twice.model)
    rates = [
        [line["learning_rate"] for line in RunFolder(each.folder).metrics() if "learning_rate" in line]
        for each in (once, twice)
    ]
    assert rates[0] == rates[1]


def test_changed_hyperparameters_of_the_optimizer_are_used(base_run, tmp_path, monkeypatch):
    killed_at(4, base_run, tmp_path, monkeypatch)
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (seen.append(dict(self.param_groups[0])), step(self, *a, **k))[1],
    )
    run(config(base_run, tmp_path, weight_decay=0.5, adam_beta1=0.5, adam_eps=1e-6))
    assert seen[0]["weight_decay"] == 0.5 and seen[0]["betas"] == (0.5, 0.95) and seen[0]["eps"] == 1e-6


def test_results_without_a_whole_checkpoint_are_left_as_they_are(base_run, tmp_path, monkeypatch, told):
    folder = killed_at(4, base_run, tmp_path, monkeypatch)
    for checkpoint in folder.checkpoints():
        (checkpoint.path / "model.safetensors").write_bytes(b"damaged")
    before, lines = weights(folder.path / "best"), folder.metrics()
    result = run(config(base_run, tmp_path), reporter=told)
    assert result.folder.name == "run-2" and folder.metrics() == lines
    assert all(torch.equal(value, before[name]) for name, value in weights(folder.path / "best").items())
    assert "no complete checkpoint: they are left as they are; this one goes to" in told.text


def test_the_folder_that_is_named_is_the_run(base_run, tmp_path, monkeypatch):
    folder = killed_at(2, base_run, tmp_path, monkeypatch)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folder.path.rename(tmp_path / "a" / "moved")
    monkeypatch.chdir(tmp_path / "b")

    from llmlab.cli.options import load

    result = run(load(Path("../a/moved"), ["max_steps=4"]))
    assert result.folder == Path("../a/moved") and not folder.path.exists()
    assert steps(RunFolder(result.folder)) == [1, 2, 3, 4]


def test_other_rows_and_other_weights_are_told(base_run, tmp_path, monkeypatch, told):
    base = tmp_path / "base"
    shutil.copytree(base_run.model, base)
    changes = dict(policy_checkpoint=str(base), adapter="lora", lora_r=2)
    killed_at(2, base_run, tmp_path, monkeypatch, **changes)
    write_rows(tmp_path / "rows.jsonl", ROWS[:40])
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        run(config(base_run, tmp_path, **changes), reporter=told)
    assert "rows.jsonl has changed since the checkpoint" in told.text
    shutil.copy(next(base_run.folder.glob("checkpoint-10/model.safetensors")), base / "model.safetensors")
    loaded = []
    monkeypatch.setattr("llmlab.training.methods.sft.load_policy", lambda *_: loaded.append(1))
    with pytest.raises(LabError, match="does not have the weights that this run started with"):
        run(config(base_run, tmp_path, **changes))
    with pytest.raises(LabError, match="that is another model"):
        run(config(base_run, tmp_path, policy_checkpoint=str(base)))
    assert not loaded, "refused before anything is loaded"


def test_the_checkpoint_of_a_stopped_run_is_a_model(base_run, tmp_path, monkeypatch):
    folder = killed_at(1, base_run, tmp_path, monkeypatch)
    assert find_model(str(folder.path)) == str(folder.path / "checkpoint-1")
    model, tokenizer = load_model(str(folder.path))
    assert tokenizer.chat_template and sum(p.numel() for p in model.parameters())


def test_fewer_processes_keep_what_was_summed_since_the_last_log(base_run, tmp_path, monkeypatch, told):
    whole = run(config(base_run, tmp_path, log_every=3, output_dir=str(tmp_path / "whole")))
    folder = killed_at(4, base_run, tmp_path, monkeypatch, log_every=3)
    checkpoint = folder.path / "checkpoint-4"
    state, about = (
        json.loads((checkpoint / name).read_text()) for name in ("lab_state.json", "run_config.json")
    )
    (checkpoint / "lab_state.json").unlink()
    for rank, part in ((0, 0.5), (1, 1.5)):  # as two processes write it
        (checkpoint / f"lab_state_{rank}.json").write_text(json.dumps(state | {"loss": state["loss"] * part}))
    (checkpoint / "run_config.json").write_text(json.dumps(about | {"processes": 2}))
    write_manifest(checkpoint, step=4)
    result = run(config(base_run, tmp_path, log_every=3), reporter=told)
    assert "2 processes -> 1: an update reads 8 rows" in told.text
    losses = [
        [line["loss"] for line in RunFolder(path).metrics() if "loss" in line]
        for path in (result.folder, whole.folder)
    ]
    assert losses[0] == losses[1]


def test_a_checkpoint_in_parts_says_how_many_processes_it_takes(base_run, tmp_path, monkeypatch):
    folder = killed_at(2, base_run, tmp_path, monkeypatch)
    checkpoint = folder.path / "checkpoint-2"
    (checkpoint / "pytorch_model_fsdp_0").mkdir()
    (checkpoint / "pytorch_model_fsdp_0" / "__0_0.distcp").write_text("part")
    about = json.loads((checkpoint / "run_config.json").read_text())
    (checkpoint / "run_config.json").write_text(json.dumps(about | {"processes": 4}))
    write_manifest(checkpoint, step=2)
    with pytest.raises(LabError, match=r"in parts by 4 processes.*--num_processes 4"):
        run(config(base_run, tmp_path))


def test_a_model_whose_replacement_was_broken_off_is_put_back(base_run, tmp_path, monkeypatch):
    folder = killed_at(4, base_run, tmp_path, monkeypatch)
    wanted = weights(folder.path / "best")
    (folder.path / "best").rename(folder.path / ".best-old")
    (folder.path / ".best-4711").mkdir()
    (folder.path / ".metrics.jsonl.x1").write_text("")
    folder.remove_leftovers()
    assert all(torch.equal(value, wanted[name]) for name, value in weights(folder.path / "best").items())
    assert {path.name for path in folder.path.iterdir() if path.name.startswith(".")} <= {".lock"}


def test_another_optimizer_with_curvature(base_run, tmp_path, monkeypatch):
    killed_at(4, base_run, tmp_path, monkeypatch)
    assert run(config(base_run, tmp_path, optimizer="sophia", max_steps=12)).model


def test_a_harmless_variable_changes_no_record(base_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZER_DIR", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_averysecretvalue")
    result = run(config(base_run, tmp_path, max_steps=2))
    assert RunFolder(result.folder).record["config"]["output_dir"] == str(tmp_path / "run")
    with pytest.raises(LabError, match="contains the value of HF_TOKEN"):
        run(config(base_run, tmp_path, max_steps=2, output_dir=str(tmp_path / "hf_averysecretvalue")))
    assert not (tmp_path / "hf_averysecretvalue").exists()

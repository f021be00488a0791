"""Every stage, stopped in the middle of whatever it does, again and again:
it ends as the run that was never stopped.
"""

import shutil

import pytest
import torch

from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import write_rows
from tests.training.stages import SHARED, STAGES, ending, stage_config, stop_after

pytestmark = pytest.mark.slow  # trains


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_again_and_again_it_ends_alike(stage, short_policy, tmp_path, monkeypatch):
    whole = run(stage_config(stage, short_policy, tmp_path / "whole"))
    stops = 0
    wider = 3 if stage.startswith(("grpo", "ppo")) else 1
    for forwards in (5, 9, 7, 13, 4, 11, 6, 17, 1000):
        stop_after(monkeypatch, forwards * wider)
        result = run(stage_config(stage, short_policy, tmp_path / "stopped"))
        if not result.stopped_by:
            break
        stops += 1
        folder = RunFolder(tmp_path / "stopped")
        assert folder.record["status"] == "stopped"
        assert not folder.checkpoints() or folder.checkpoints()[0].fault() == ""
    assert stops >= 2 and not (tmp_path / "stopped" / ".saving").exists()
    (weights, lines, samples), (wanted, wanted_lines, wanted_samples) = (
        ending(tmp_path / "stopped"),
        ending(whole.folder),
    )
    assert lines == wanted_lines and samples == wanted_samples and (samples or stage == "reward")
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_resumed_in_a_later_epoch_it_reads_the_prompts_in_the_same_order(stage, short_policy, tmp_path):
    cls, values = STAGES[stage]
    data = write_rows(
        tmp_path / "prompts.jsonl",
        [{"prompt": "Who is it" + " now" * i + "?", "answer": "Ahab"} for i in range(6)],
    )
    shared = {
        **SHARED,
        **values,
        "iterations": 1,
        "ppo_epochs": 1,
        "max_steps": 9,
        "save_every": 8,
        "eval_fraction": 0.0,
    }
    options = {name: value for name, value in shared.items() if name in cls.model_fields}
    ends = []
    for folder in (tmp_path / "whole", tmp_path / "resumed"):
        if folder.name == "resumed":
            shutil.copytree(tmp_path / "whole", folder)
            for left in ("checkpoint-9", "final"):
                shutil.rmtree(folder / left)
            RunFolder(folder).update(status="running")
        run(cls(**options, policy_checkpoint=short_policy, datasets=[data], output_dir=str(folder)))
        ends.append(ending(folder)[:2])
    (wanted, lines), (weights, again) = ends
    assert lines[-1]["epoch"] > 2 and again == lines
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)

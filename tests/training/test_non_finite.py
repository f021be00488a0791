"""Numbers that are not finite: the update is skipped, rows are named,
the run stops at the last good checkpoint.
"""

import pytest
import torch

from llmlab.config import SFTConfig
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.models import LabModel
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import write_rows


def config(base_run, folder, **changes):
    rows = [{"prompt": f"Who is {i}?", "completion": "Queequeg" if i == 5 else "Ahab"} for i in range(64)]
    values = dict(
        policy_checkpoint=str(base_run.folder),
        datasets=[write_rows(folder / "rows.jsonl", rows)],
        max_steps=20,
        learning_rate=1e-3,
        batch_size=8,
        gradient_accumulation_steps=1,
        max_length=64,
        eval_every=10,
        save_every=4,
        packing=False,
        warmup_steps=0,
        log_every=1,
        eval_fraction=0.0,
        output_dir=str(folder / "run"),
        report_to=[],
        scheduler="none",
    )
    return SFTConfig(**{**values, **changes})


def break_rows(monkeypatch, tokenizer, word, times, after=0):
    """Makes what is computed of rows with a word infinite, as a broken sum in half precision does."""
    left, inner = [times + after], LabModel.forward

    def forward(self, input_ids=None, *args, **kwargs):
        out = inner(self, input_ids, *args, **kwargs)
        bad = torch.tensor([word in tokenizer.decode(row) for row in input_ids])
        left[0] -= bool(bad.any())
        if bad.any() and 0 <= left[0] < times:
            out.last_hidden_state = out.last_hidden_state * torch.where(bad, float("inf"), 1.0)[:, None, None]
        return out

    monkeypatch.setattr(LabModel, "forward", forward)


@pytest.mark.slow
def test_a_bad_row_costs_one_update_and_is_named(base_run, tmp_path, monkeypatch):
    break_rows(
        monkeypatch, load_tokenizer(str(base_run.model)), "Queequeg", times=2
    )  # in the update, and alone when the row is looked for
    result = run(config(base_run, tmp_path))
    skipped = [line for line in RunFolder(result.folder).metrics() if "skipped" in line]
    assert len(skipped) == 1 and skipped[0]["skipped"] == "the loss is not finite"
    assert (
        len(skipped[0]["rows"]) == 1
        and "Who is 5?" in skipped[0]["rows"][0]
        and "Queequeg" in skipped[0]["rows"][0]
    )
    assert result.model


@pytest.mark.slow
def test_a_run_that_stays_broken_stops_at_the_last_good_checkpoint(base_run, tmp_path, monkeypatch):
    break_rows(monkeypatch, load_tokenizer(str(base_run.model)), "Who is", times=10_000, after=5)
    with pytest.raises(
        LabError,
        match=r"(?s)not finite at step 9, and 4 updates in a row were skipped.*resumes from checkpoint-",
    ) as e:
        run(config(base_run, tmp_path))
    assert e.value.exit_code == 1
    folder = RunFolder(tmp_path / "run")
    checkpoint, _ = folder.latest_valid_checkpoint()
    weights = load_model(str(checkpoint))[0]
    assert all(torch.isfinite(p).all() for p in weights.parameters()) and folder.record["status"] == "stopped"


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_sealed(base_run, tmp_path):
    with pytest.raises(LabError, match="the weights are not finite; checkpoint-1 was not saved"):
        run(config(base_run, tmp_path, learning_rate=1e38, save_every=1))
    assert RunFolder(tmp_path / "run").latest_valid_checkpoint()[0] is None


@pytest.mark.slow
def test_after_too_many_skips_the_error_names_step_and_rows(base_run, tmp_path, monkeypatch):
    break_rows(monkeypatch, load_tokenizer(str(base_run.model)), "Who is", times=1000)
    with pytest.raises(
        LabError, match=r"(?s)the loss is not finite at step 3, and 3 updates in a row were skipped.*Who is"
    ):
        run(config(base_run, tmp_path, max_skipped_steps=2))

"""A resumed run sees exactly the rows that an uninterrupted one sees: stored, streamed,
with loader processes, with ranks.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.training.jobs import several
from tests.training.stages import stop_after

pytestmark = pytest.mark.slow  # trains


def sources(folder, *, streaming):
    folder.mkdir(exist_ok=True)
    for name, count in (("a", 150), ("b", 60)):
        text = "".join(
            json.dumps({"text": f"{name} {i} the whale and the sea and the ship"}) + "\n"
            for i in range(count)
        )
        (folder / f"{name}.jsonl").write_text(text)
    return [
        {"name": str(folder / "a.jsonl"), "streaming": streaming, "weight": 3.0},
        {"name": str(folder / "b.jsonl"), "weight": 1.0},
    ]


def job(base_config, folder, data, **changes):
    values = dict(
        datasets=data,
        max_steps=12,
        save_every=6,
        eval_every=12,
        log_every=1,
        batch_size=2,
        gradient_accumulation_steps=2,
        save_best_only=False,
        report_to=[],
    )
    return base_config(folder, **{**values, **changes})


def cut_back(whole, folder):
    """A copy of a finished run as it was when it died after step 6."""
    shutil.copytree(whole, folder)
    for left in ("checkpoint-12", "best", "final"):
        shutil.rmtree(folder / left, ignore_errors=True)
    RunFolder(folder).update(
        status="running", config={**RunFolder(folder).record["config"], "output_dir": str(folder)}
    )


def same_ending(whole, resumed):
    weights = [load_file(folder / "final" / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    curves = [
        [(x["step"], x["loss"]) for x in RunFolder(f).metrics() if "loss" in x] for f in (whole, resumed)
    ]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == list(range(1, 13))


@pytest.mark.parametrize("streaming, workers", [(False, 2), (True, 0), (True, 2)])
def test_one_process(base_config, tmp_path, streaming, workers):
    data = sources(tmp_path, streaming=streaming)
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(job(base_config, whole, data, dataloader_workers=workers))
    assert (whole / "checkpoint-6" / "data_position.json").exists() == streaming
    cut_back(whole, again)
    run(job(base_config, again, data, dataloader_workers=workers))
    same_ending(whole, again)


def test_a_stream_goes_on_in_every_loader_process(base_config, tmp_path, monkeypatch):
    monkeypatch.setattr("llmlab.data.stream.MIN_WINDOW", 1500)
    monkeypatch.setattr("llmlab.data.stream.ROWS_OF_A_WINDOW", 1)
    data = sources(tmp_path, streaming=True)
    whole, again = tmp_path / "whole", tmp_path / "again"
    options = dict(dataloader_workers=2, gradient_accumulation_steps=3, eval_fraction=0.0, save_every=100)
    run(job(base_config, whole, data, **options))
    stop_after(monkeypatch, 16)  # in the sixth update; the other process gives the next batch
    assert run(job(base_config, again, data, **options)).stopped_by
    place = json.loads((again / "checkpoint-5" / "data_position.json").read_text())["stream"]
    assert place["turn"] == 1 and [lane["rows"] for lane in place["lanes"]] == [16, 14]
    assert min(lane["windows"]["number"] for lane in place["lanes"]) > 0, "nothing before is read again"
    stop_after(monkeypatch, 1000)
    run(job(base_config, again, data, **options))
    same_ending(whole, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_stream_left_out_is_told(base_config, tmp_path, monkeypatch, workers):
    """Over a stop, and in loader processes as well."""
    monkeypatch.setattr("llmlab.data.stream.MIN_WINDOW", 1500)
    monkeypatch.setattr("llmlab.data.stream.ROWS_OF_A_WINDOW", 1)
    rows = [{"text": "the whale " * 5 if i % 3 else " "} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"name": str(tmp_path / "a.jsonl"), "streaming": True}]
    options = dict(batch_size=20, gradient_accumulation_steps=1, max_steps=12, eval_every=12, eval_rows=4)
    config = job(base_config, tmp_path / "run", data, dataloader_workers=workers, **options)
    stop_after(monkeypatch, 4)
    assert run(config).stopped_by
    stop_after(monkeypatch, 1000)
    run(config)
    held_out, trained = RunFolder(tmp_path / "run").record["data_notes"]
    assert held_out.startswith("held-out rows: left out 10 rows: empty text")
    assert trained == "left out 90 rows of the stream: empty text"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_malformed_row_far_behind_ends_the_run_with_its_place(base_config, tmp_path, workers):
    rows = [{"text": "the whale " * 20} for _ in range(1100)] + [{"text": None}]
    name = tmp_path / "a.jsonl"
    name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = job(base_config, tmp_path / "run", [{"name": str(name), "streaming": True}], eval_fraction=0.0)
    with pytest.raises(LabError) as caught:
        run(config.model_copy(update={"dataloader_workers": workers}))
    assert str(caught.value).startswith(f"{name}, row 1101: no value in column 'text': fix it")


def test_weights_of_mixture_and_sources_by_themselves(base_config, tmp_path):
    result = run(job(base_config, tmp_path / "run", sources(tmp_path, streaming=False)))
    figures = result.metrics
    assert figures["eval_loss"] == pytest.approx((figures["eval_a_loss"] + figures["eval_b_loss"]) / 2)
    assert figures["eval_loss_spread"] == pytest.approx(
        abs(figures["eval_a_loss"] - figures["eval_b_loss"]) / 2
    )
    assert figures["eval_bits_per_byte"] == pytest.approx(
        (figures["eval_a_bits_per_byte"] + figures["eval_b_bits_per_byte"]) / 2
    )
    assert figures["before_eval_loss"] > figures["eval_loss"] and result.model.name == "final"


@pytest.fixture(scope="module")
def in_two_processes(base_config, tmp_path_factory):
    """A whole run and one that goes on from its copy, of stored and of streamed rows, in one job."""
    folder, plan = tmp_path_factory.mktemp("two"), []
    for streaming in (False, True):
        place = folder / str(streaming)
        data = sources(place, streaming=streaming)
        configs = [job(base_config, place / name, data).to_json_dict() for name in ("whole", "again")]
        plan += [
            {"config": configs[0]},
            {"copy": [str(place / "whole"), str(place / "again")]},  # of stored rows in the second epoch
            {"config": configs[1], "resume": str(place / "again" / "checkpoint-6")},
        ]
    assert not [part["error"] for part in several(plan, folder) if part and part["error"]]
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes(in_two_processes, streaming):
    place = in_two_processes / str(streaming)
    same_ending(place / "whole", place / "again")
    positions = [
        (place / name / "checkpoint-6" / "data_position.json").exists() for name in ("whole", "again")
    ]
    assert positions == [streaming] * 2 and RunFolder(place / "again").record["step"] == 12

"""Which models there are and what each is fit for: runs, folders that are brought, the newest one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, PPOConfig, RewardConfig, SFTConfig
from llmlab.errors import LabError
from llmlab.models.resolve import check_model, resolve_model, runs_for, with_newest
from llmlab.runs.folder import find_model
from llmlab.training.engine.run import run

TUNING = [DPOConfig, GRPOConfig, PPOConfig, DualHeadConfig, RewardConfig]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder, and a way to put models and finished runs into it."""
    monkeypatch.chdir(tmp_path)

    def model(folder, **about):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(
            json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **about})
        )
        save_file({"w": torch.zeros(4)}, folder / "model.safetensors")
        return folder

    def finished(name, kind, minute, **about):
        model(tmp_path / "checkpoints" / name / "final", **about)
        record = {
            "config": {"kind": kind},
            "status": "done",
            "result": "final",
            "started": f"2026-01-01T00:{minute:02d}",
        }
        (tmp_path / "checkpoints" / name / "run.json").write_text(json.dumps(record))

    return model, finished


SCORER = {"architectures": ["LlamaForSequenceClassification"]}


def test_the_newest_is_one_that_fits(lab):
    _, finished = lab
    finished("base", "pretrain", 1)
    for cls in TUNING:
        with pytest.raises(LabError, match="no run here made a fine-tuned model"):
            with_newest(cls())
    finished("chat", "sft", 2)
    finished("later", "pretrain", 3)
    finished("judge", "reward", 4, **SCORER)
    finished("reads", "sft", 5, is_encoder_decoder=True, model_type="t5")
    for cls in TUNING[:4]:
        assert getattr(with_newest(cls()), cls.STARTS_FROM) == "checkpoints/chat"
    assert with_newest(SFTConfig()).policy_checkpoint == "checkpoints/reads"
    assert [run.path.name for run in runs_for("chat")] == ["reads", "later", "chat", "base"]
    assert [run.path.name for run in runs_for("score")] == ["judge"]
    assert (
        with_newest(DPOConfig(policy_checkpoint="checkpoints/later")).policy_checkpoint == "checkpoints/later"
    )


def test_a_run_that_is_resumed_keeps_the_model_it_began_with(lab, tmp_path):
    _, finished = lab
    finished("chat", "sft", 1)
    (tmp_path / "checkpoints" / "pairs").mkdir()
    record = {"config": {"kind": "dpo", "policy_checkpoint": "checkpoints/chat"}, "status": "stopped"}
    (tmp_path / "checkpoints" / "pairs" / "run.json").write_text(json.dumps(record))
    finished("newer", "sft", 2)
    assert with_newest(DPOConfig(name="pairs")).policy_checkpoint == "checkpoints/chat"
    assert with_newest(DPOConfig(output_dir="checkpoints/pairs")).policy_checkpoint == "checkpoints/chat"
    assert with_newest(DPOConfig(name="other")).policy_checkpoint == "checkpoints/newer"


@pytest.mark.slow
def test_a_run_leaves_no_pointer_and_an_old_one_is_still_a_name(base_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run(base_config("checkpoints/first", max_steps=2, warmup_steps=0, sample_tokens=0))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["first"]
    os.symlink(made.model.relative_to("checkpoints"), "checkpoints/best")  # as earlier versions made it
    assert (tmp_path / find_model("checkpoints/best")).samefile(made.model)
    assert check_model("checkpoints/best", "sft")


@pytest.mark.parametrize(
    "use, about, expected",
    [
        ("dpo", SCORER, "is a reward model"),
        ("chat", SCORER, "is a reward model"),
        ("score", {}, "is not a reward model"),
        ("sft", {"model_type": "bert"}, "is an encoder"),
        ("grpo", {"is_encoder_decoder": True}, "is an encoder-decoder"),
        ("sft", {"model_type": "llmlab_dual_head"}, "is a dual-head model"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_what_it_is(lab, tmp_path, use, about, expected):
    model, _ = lab
    model(tmp_path / "brought", **about)
    with pytest.raises(LabError, match=expected):
        check_model("brought", use)


def test_a_brought_model_is_looked_at_whole(lab, tmp_path):
    model, _ = lab
    folder = model(tmp_path / "brought")
    assert check_model("brought", "dpo") == Path("brought")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(LabError, match=r"model\.safetensors is truncated"):
        check_model("brought", "dpo")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(LabError, match="in a pickle"):
        check_model("brought", "dpo")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(LabError, match="has no weights"):
        check_model("brought", "dpo")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(LabError, match="lacks model-00001-of-00002"):
        check_model("brought", "dpo")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "gone")})
    )
    save_file({"w": torch.zeros(4)}, folder / "adapter_model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(LabError, match=r"was trained on .*gone, which does not exist"):
        check_model("brought", "dpo")
    (tmp_path / "w.gguf").write_bytes(b"nothing")
    with pytest.raises(LabError, match="is not a GGUF file"):
        check_model("w.gguf", "dpo")


def test_a_name_is_resolved_once_to_what_it_stands_for(lab, tmp_path):
    model, finished = lab
    finished("chat", "sft", 1)
    model(tmp_path / "brought")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    found = {
        name: resolve_model(name) for name in ("chat", "./brought", "./adapter", "./small.gguf", "org/name")
    }
    assert [ref.kind for ref in found.values()] == ["folder", "folder", "adapter", "gguf", "hub"]
    assert found["chat"].path == tmp_path / "checkpoints" / "chat" / "final"
    assert str(found["org/name"].path) == found["org/name"].where == "org/name"
    for name, ref in found.items():
        assert ref.name == name and resolve_model(ref) is ref
    with pytest.raises(AttributeError):
        ref.where = "elsewhere"

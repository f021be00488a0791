"""Training: it learns, it records, it resumes, and its figures agree with formulas computed apart."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from llmlab.config import DPOConfig, SFTConfig
from llmlab.errors import LabError
from llmlab.models import LabForCausalLM
from llmlab.models.load import load_model
from llmlab.models.log_probs import answer_log_probs
from llmlab.runs.folder import RunFolder, find_model
from llmlab.runs.manifest import verify, write_manifest
from llmlab.training.engine.run import run
from llmlab.training.optimizers import build_optimizer, split_parameters
from llmlab.training.padding_free import packing_leaks
from tests.conftest import small_model, write_rows


@pytest.mark.slow
def test_base_run_learns_and_leaves_what_the_house_says(base_run):
    assert base_run.metrics["eval_loss"] < base_run.metrics["before_eval_loss"] - 0.5
    assert base_run.metrics["before_eval_loss"] == pytest.approx(math.log(512), rel=0.05)
    folder = RunFolder(base_run.folder)
    assert folder.record["status"] == "done" and folder.record["config"]["kind"] == "pretrain"
    assert folder.record["attention"] == "sdpa" and folder.record["packages"]["torch"]
    steps = [line["step"] for line in folder.metrics() if "loss" in line]
    assert steps == [1, 5, 10, 15, 20, 25, 30]
    assert base_run.model.name == "best" and verify(base_run.model) == ""
    assert [checkpoint.fault() for checkpoint in folder.checkpoints()] == [""] * 3
    assert not list(base_run.folder.glob("best/*.bin"))
    assert load_model(str(base_run.folder))[0].config.use_cache is True


def test_bits_per_byte_is_the_loss_over_the_bytes(base_run, base_config, tokenizer):
    from llmlab.data.packed_text import pretrain_data

    held_out = pretrain_data(base_config(base_run.folder), tokenizer, 64).eval["moby-dick"]
    text = "".join(tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in held_out)
    loss, bits = base_run.metrics["eval_loss"], base_run.metrics["eval_bits_per_byte"]
    tokens_per_byte = sum(len(row["input_ids"]) for row in held_out) / len(text.encode())
    assert bits == pytest.approx(loss / math.log(2) * tokens_per_byte, rel=0.02)


@pytest.mark.slow
def test_a_replayed_config_gives_the_same_losses(base_run, base_config, tmp_path):
    again = run(base_config(tmp_path / "again"))
    losses = [
        [line["loss"] for line in RunFolder(r.folder).metrics() if "loss" in line] for r in (base_run, again)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_resume_continues_as_if_never_stopped(base_run, base_config, tmp_path):
    import shutil

    folder = tmp_path / "resumed"
    shutil.copytree(base_run.folder, folder)
    for left in ("checkpoint-30", "best"):
        shutil.rmtree(folder / left)
    weights = folder / "checkpoint-20" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # broken: has to be passed over for checkpoint-10
    RunFolder(folder).update(status="running")
    result = run(base_config(folder))
    original, resumed = (RunFolder(f).metrics() for f in (base_run.folder, folder))
    for figure in ("loss", "eval_loss"):  # no step twice, none missing
        curves = [[(x["step"], x[figure]) for x in lines if figure in x] for lines in (resumed, original)]
        assert curves[0] == curves[1]
    a, b = (load_model(str(r.model))[0].state_dict() for r in (base_run, result))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("best_only", [True, False])
def test_a_run_killed_behind_its_last_step_does_no_other_step(base_run, base_config, tmp_path, best_only):
    import shutil

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    first = run(base_config(whole, max_steps=12, save_every=6, save_best_only=best_only))
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "final", ignore_errors=True)
    RunFolder(folder).update(status="running")
    again = run(base_config(folder, max_steps=12, save_every=6, save_best_only=best_only))
    assert again.model.name == first.model.name and RunFolder(folder).metrics() == RunFolder(whole).metrics()
    a, b = (load_model(str(r.model))[0].state_dict() for r in (first, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_finished_folder_is_not_overwritten(base_run, base_config):
    result = run(base_config(base_run.folder, max_steps=2, warmup_steps=0))
    assert result.folder.name == "base-2" and RunFolder(base_run.folder).record["step"] == 30


def test_a_run_that_does_not_fit_the_disk_writes_nothing(base_config, tmp_path, monkeypatch):
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(LabError, match=r"the disk has 0\.0 GB free"):
        run(base_config(tmp_path / "full"))
    assert not (tmp_path / "full").exists()


def test_vocabulary_smaller_than_the_tokenizers(base_config, shape, tmp_path):
    with pytest.raises(LabError, match=r"`vocab_size` 500 is smaller than the 512 tokens"):
        run(base_config(tmp_path / "x", model=shape.model_copy(update={"vocab_size": 500})))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, rate", [("adamw", 3e-3), ("adafactor", 3e-2), ("lion", 1e-3), ("sophia", 3e-3), ("muon", 3e-3)]
)
def test_every_optimizer_learns(name, rate, base_config, tmp_path):
    result = run(base_config(tmp_path / "r", optimizer=name, learning_rate=rate, max_steps=20, eval_every=20))
    assert result.metrics["eval_loss"] < result.metrics["before_eval_loss"] - 0.3


def test_decay_spares_norms_biases_and_embeddings():
    model = small_model(attention_bias=True, norm_type="layernorm", tie_word_embeddings=False)
    decayed, spared = (
        {name.split(".")[-2] + "." + name.split(".")[-1] for name, _ in part}
        for part in split_parameters(model)
    )
    assert "embed_tokens.weight" in spared and "lm_head.weight" in decayed
    assert {n for n in decayed if "norm" in n or n.endswith("bias")} == set()


def test_muon_takes_hidden_matrices_only(base_config, tmp_path):
    model = small_model(tie_word_embeddings=False)
    optimizer = build_optimizer(model, base_config(tmp_path, optimizer="muon"))
    hidden = {id(p) for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in hidden}
    assert all("proj" in name for name in names) and len(names) == 2 * 7


def test_packing_leak_is_found_by_trying():
    assert not packing_leaks(small_model())
    leaky = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2))
    forward = leaky.forward
    leaky.forward = lambda position_ids=None, **kwargs: forward(
        **kwargs
    )  # one that ignores where documents begin
    assert packing_leaks(leaky)


@pytest.fixture(scope="module")
def sft_run(base_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    rows = [
        {"prompt": f"Who is number {i}?", "completion": "Ahab" if i % 2 else "Queequeg"} for i in range(200)
    ]
    return run(
        SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[write_rows(folder / "rows.jsonl", rows)],
            max_steps=40,
            learning_rate=5e-3,
            batch_size=4,
            gradient_accumulation_steps=1,
            max_length=64,
            eval_every=20,
            output_dir=str(folder / "run"),
            report_to=[],
        )
    )


@pytest.mark.slow
def test_sft_learns_to_answer_and_to_stop(sft_run):
    assert sft_run.metrics["eval_loss"] < sft_run.metrics["before_eval_loss"] / 4
    model, tokenizer = load_model(str(sft_run.folder))
    assert isinstance(model, LabForCausalLM) and tokenizer.chat_template
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who is number 7?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = model.eval().generate(ids, do_sample=False, max_new_tokens=30)[0, ids.shape[1] :]
    assert tokenizer.decode(out) in ("Ahab<|im_end|>", "Queequeg<|im_end|>")


def pairs_file(folder):
    rows = [{"prompt": f"Who is number {i}?", "chosen": "Ahab", "rejected": "Queequeg"} for i in range(64)]
    return write_rows(folder / "pairs.jsonl", rows)


def dpo_config(sft_run, folder, **changes):
    values = dict(
        policy_checkpoint=str(sft_run.folder),
        datasets=[pairs_file(folder)],
        max_steps=6,
        learning_rate=1e-3,
        warmup_steps=0,
        batch_size=8,
        mini_batch_size=8,
        max_length=64,
        max_prompt_length=48,
        log_every=1,
        eval_every=6,
        eval_fraction=0.25,
        output_dir=str(folder / "run"),
        report_to=[],
        save_best_only=False,
        scheduler="none",
    )
    if changes.get("reference") != "live":
        values["cache_dir"] = str(folder / "cache")
    return DPOConfig(**{**values, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["sequential", "live"])
def test_dpo_learns_the_preference(sft_run, tmp_path, reference):
    result = run(dpo_config(sft_run, tmp_path, reference=reference))
    assert result.metrics["before_eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert result.metrics["eval_rewards/accuracies"] > 0.9


@pytest.mark.slow
def test_dpo_loss_is_the_formulas(sft_run, tmp_path):
    result = run(dpo_config(sft_run, tmp_path, beta=0.3))
    policy, tokenizer = load_model(str(result.folder / "final"))
    reference, _ = load_model(str(sft_run.folder))
    from llmlab.data.pairs import dpo_data

    rows = dpo_data(dpo_config(sft_run, tmp_path, beta=0.3), tokenizer).eval["pairs"]
    ratios = []
    for key in ("chosen_ids", "rejected_ids"):
        of_policy, of_reference = (
            answer_log_probs(m.eval(), rows["prompt_ids"], rows[key], tokenizer.pad_token_id)
            for m in (policy, reference)
        )
        ratios.append(of_policy - of_reference)
    expected = -F.logsigmoid(0.3 * (ratios[0] - ratios[1])).mean().item()
    assert result.metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_sequential_and_live_reference_give_the_same_losses(sft_run, tmp_path):
    losses = []
    for reference in ("sequential", "live"):
        (tmp_path / reference).mkdir()
        result = run(dpo_config(sft_run, tmp_path / reference, reference=reference))
        losses.append([line["loss"] for line in RunFolder(result.folder).metrics() if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_adapters_train_a_share_and_load_again(sft_run, tmp_path, adapter):
    result = run(dpo_config(sft_run, tmp_path, adapter=adapter, lora_r=4, learning_rate=5e-3))
    record = RunFolder(result.folder).record
    assert record["trained_parameters"] < 0.3 * record["parameters"]
    assert sorted(p.name for p in (result.folder / "final").iterdir() if p.is_dir()) == []
    model, _ = load_model(str(result.folder))  # by the name of the run, as a person gives it
    assert result.metrics["eval_loss"] < math.log(2) - 0.05 and model.peft_config["default"].r == 4


def test_log_probs_of_answers_ignore_prompt_and_padding(base_run):
    model, _ = load_model(str(base_run.folder))
    model.eval()
    prompts, answers = [[5, 6, 7], [9]], [[10, 11], [12, 13, 14, 15]]
    together = answer_log_probs(model, prompts, answers, 0)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        alone = sum(log_probs[len(prompt) + i - 1, token] for i, token in enumerate(answer))
        assert together[index].item() == pytest.approx(alone.item(), abs=1e-4)


def test_seals_notice_every_change(tmp_path):
    (tmp_path / "a").write_text("weights")
    assert verify(tmp_path) == "has no manifest"
    write_manifest(tmp_path, step=3)
    assert verify(tmp_path) == ""
    (tmp_path / "a").write_text("weighty")
    assert verify(tmp_path) == "a has changed"
    (tmp_path / "a").unlink()
    assert verify(tmp_path) == "a is missing"


@pytest.mark.parametrize("name", ["checkpoints/none", "./none", "/nowhere/at/all", "none.gguf"])
def test_checkpoints_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="no such checkpoint"):
        find_model(name)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(LabError, match=r"has neither config\.json nor run\.json"):
        find_model(str(tmp_path))

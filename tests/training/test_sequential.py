"""Sequential DPO: the same losses and weights as a live reference, whatever the order, batches,
adapters and ranks.
"""

import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import threading

import pytest
import torch
import trl
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmlab.config import DPOConfig, SFTConfig, load_config, save_config
from llmlab.data.pairs import dpo_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.models.identity import weights_fingerprint
from llmlab.models.load import load_model
from llmlab.models.log_probs import answer_log_probs
from llmlab.runs.folder import RunFolder
from llmlab.runs.lock import run_lock
from llmlab.training.engine.reporter import SILENT
from llmlab.training.engine.run import run
from llmlab.training.methods import dpo
from llmlab.training.order import LengthGrouped, SeededOrder
from llmlab.training.reference import scorer as reference
from llmlab.training.reference.cache import SUMS, TOKENS, ReferenceCache, caches, item_key
from llmlab.training.reference.scorer import reference_values
from llmlab.training.trainers.base import LabTrainerMixin
from llmlab.training.trainers.dpo import DPOTrainer
from llmlab.ui.cache import clear, matching
from tests.conftest import small_model
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow  # trains

WORDS = ["the", "whale", "ship", "sea", "captain", "harpoon", "white", "deck", "mast", "storm"]


def pair(i):
    """A pair of its own lengths, long-tailed, by its number."""
    rng = random.Random(i)
    say = lambda most: " ".join(rng.choice(WORDS) for _ in range(min(most, int(rng.expovariate(0.25)) + 1)))  # noqa: E731
    return {"prompt": f"{i} {say(8)}?", "chosen": say(14) + " Ahab", "rejected": say(14) + " Stubb"}


def write(path, numbers):
    path.write_text("".join(json.dumps(pair(i)) + "\n" for i in numbers))
    return str(path)


@pytest.fixture(scope="module")
def policy(base_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in range(60))
    )
    return str(
        run(
            SFTConfig(
                policy_checkpoint=str(base_run.folder),
                datasets=[str(rows)],
                max_steps=10,
                learning_rate=2e-3,
                batch_size=4,
                gradient_accumulation_steps=1,
                max_length=64,
                eval_every=10,
                output_dir=str(folder / "run"),
                report_to=[],
            )
        ).model
    )


def config(policy, folder, data, name="run", **changes):
    values = dict(
        policy_checkpoint=policy,
        datasets=[data],
        max_steps=50,
        learning_rate=5e-4,
        warmup_steps=0,
        batch_size=2,
        mini_batch_size=1,
        max_length=96,
        max_prompt_length=48,
        log_every=1,
        eval_every=25,
        save_every=25,
        eval_fraction=0.1,
        scheduler="none",
        output_dir=str(folder / name),
        cache_dir=str(folder / "cache"),
        report_to=[],
        save_best_only=False,
    )
    values |= changes
    if values.get("reference") == "live":
        values.pop("cache_dir")
    return DPOConfig(**values)


def ending(result):
    lines = RunFolder(result.folder).metrics()
    name = (
        "adapter_model.safetensors"
        if (result.folder / "final" / "adapter_config.json").exists()
        else "model.safetensors"
    )
    return (
        [line["loss"] for line in lines if "loss" in line],
        [line["grad_norm"] for line in lines if "grad_norm" in line],
        [line["eval_loss"] for line in lines if "eval_loss" in line],
        load_file(result.folder / "final" / name),
    )


def close(one, other, *, losses=1e-5, weights=1e-4):
    assert one[0] == pytest.approx(other[0], abs=losses) and one[2] == pytest.approx(other[2], abs=losses)
    assert max((one[3][name] - other[3][name]).abs().max().item() for name in one[3]) <= weights


@pytest.fixture(scope="module")
def live(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    data = write(folder / "pairs.jsonl", range(60))
    return data, ending(run(config(policy, folder, data, reference="live", padding_free=False)))


def test_bit_identical_to_a_live_reference_where_batches_are_composed_alike(policy, live, tmp_path):
    data, wanted = live
    got = ending(run(config(policy, tmp_path, data, padding_free=False, reference_batch_size=1)))
    assert got[0] == wanted[0] and got[1] == wanted[1] and got[2] == wanted[2]
    assert all(torch.equal(got[3][name], wanted[3][name]) for name in wanted[3])


@pytest.mark.parametrize(
    "changes",
    [
        dict(padding_free=False, reference_batch_size=7),
        dict(),
        dict(reference_batch_size=3),
    ],
)
def test_within_rounding_whatever_the_reference_passes_were(policy, live, tmp_path, changes):
    data, wanted = live
    close(ending(run(config(policy, tmp_path, data, **changes))), wanted)


def test_two_references_in_one_trainer_agree_for_every_loss(policy, tmp_path):
    data = write(tmp_path / "pairs.jsonl", range(24))
    losses = DPOConfig.model_fields["loss_type"].annotation.__args__
    for loss in losses:
        got = [
            ending(
                run(
                    config(
                        policy,
                        tmp_path,
                        data,
                        f"{loss}-{kind}",
                        reference=kind,
                        loss_type=loss,
                        max_steps=2,
                        batch_size=4,
                        mini_batch_size=4,
                        eval_every=2,
                        save_every=2,
                    )
                )
            )
            for kind in ("sequential", "live")
        ]
        assert got[0][0] == pytest.approx(got[1][0], abs=1e-4, rel=1e-4), loss
    assert len(caches(tmp_path / "cache")) == 1, "one cache serves all of them"


@pytest.mark.parametrize("loss", DPOConfig.model_fields["loss_type"].annotation.__args__)
def test_loss_and_gradients_are_those_of_trl(policy, base_run, tmp_path, monkeypatch, loss):
    """Our trainer, padding-free, beside the library's own,
    on one batch with one policy and another reference.
    """
    tokenizer = load_tokenizer(policy)
    ensure_chat_template(tokenizer)
    options = config(policy, tmp_path, write(tmp_path / "pairs.jsonl", range(12)), loss_type=loss)
    rows = dpo_data(options, tokenizer).train.select(range(8))
    results = []
    for kind in (trl.DPOTrainer, DPOTrainer):
        ours = kind is DPOTrainer
        monkeypatch.setattr(
            trl.DPOTrainer, "_prepare_dataset", lambda self, dataset, *args, **kwargs: dataset
        )
        torch.manual_seed(0)
        arguments = trl.DPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            beta=0.2,
            loss_type=[loss],
            label_smoothing=options.label_smoothing,
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
        )
        model, reference_model = load_model(policy)[0], load_model(str(base_run.model))[0]
        trainer = kind(
            model=model,
            ref_model=reference_model,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            **({"padding_free": True} if ours else {}),
        )
        batch = trainer.data_collator(list(rows))
        model.train()
        value = trainer.compute_loss(model, batch)
        value.backward()
        results.append(
            (value.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        )
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5, rel=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(
            results[1][1][name], gradient, atol=1e-5 * max(1, gradient.abs().max().item()), rtol=1e-3
        )


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_with_adapters(policy, tmp_path, adapter):
    data = write(tmp_path / "pairs.jsonl", range(40))
    got = [
        ending(
            run(
                config(
                    policy,
                    tmp_path,
                    data,
                    kind,
                    reference=kind,
                    adapter=adapter,
                    lora_r=4,
                    max_steps=10,
                    batch_size=4,
                    mini_batch_size=2,
                    eval_every=10,
                    save_every=10,
                )
            )
        )
        for kind in ("sequential", "live")
    ]
    assert got[0][0][0] == pytest.approx(
        got[1][0][0], abs=1e-5
    )  # before any update: the reference's values are the same
    # TRL keeps an adapter on quantised weights in bf16: a difference in the last bit is rounded to one of
    # 2^-8 in an update
    close(*got, losses=1e-4 if adapter == "lora" else 2e-3, weights=1e-4 if adapter == "lora" else 1e-3)


def test_grouped_by_length_resumed_and_reference_not_loaded_again(policy, tmp_path, monkeypatch):
    data = write(tmp_path / "pairs.jsonl", range(30))
    grouped = dict(
        group_by_length=True,
        max_steps=24,
        save_every=6,
        eval_every=12,
        batch_size=4,
        mini_batch_size=2,
        save_total_limit=4,
    )
    whole = run(config(policy, tmp_path, data, "whole", **grouped))
    monkeypatch.setattr(reference, "load_reference", lambda *_: pytest.fail("the reference was loaded again"))
    for step in (6, 12, 18):  # within the first epoch of 7 steps, and in later ones
        folder = tmp_path / f"again-{step}"
        shutil.copytree(whole.folder, folder)
        for left in (f"checkpoint-{later}" for later in (24, 18, 12, 6) if later > step):
            shutil.rmtree(folder / left, ignore_errors=True)
        for left in ("best", "final"):
            shutil.rmtree(folder / left)
        RunFolder(folder).update(status="running")
        again = run(config(policy, tmp_path, data, f"again-{step}", **grouped))
        assert ending(again)[0] == ending(whole)[0]
        assert all(torch.equal(value, ending(whole)[3][name]) for name, value in ending(again)[3].items())


@pytest.fixture
def asked(monkeypatch):
    """How many pairs the reference was asked about, pass by pass."""
    sizes = []
    real = reference.reference_values
    monkeypatch.setattr(
        reference,
        "reference_values",
        lambda m, items, *a, **k: sizes.append(len(items)) or real(m, items, *a, **k),
    )
    return sizes


@pytest.mark.parametrize("grouped", [False, True])
def test_only_what_the_run_reads_is_computed_and_a_longer_one_completes_it(
    policy, live, tmp_path, asked, grouped
):
    data = live[0]
    values = dict(
        padding_free=False, group_by_length=grouped, eval_rows=3, eval_every=10, save_every=10, max_steps=30
    )
    wanted = ending(run(config(policy, tmp_path, data, "live", reference="live", **values)))
    values["reference_batch_size"] = 1
    short = run(config(policy, tmp_path, data, **{**values, "max_steps": 10}))
    assert sum(asked) == 10 * 2 + 3, "updates x pairs, and the held-out pairs"
    note = RunFolder(short.folder).record["data_notes"][-1]
    assert "23 pairs computed" in note and "0 cached, 37 that this run does not read left out" in note
    assert ending(short)[0] == wanted[0][:10]
    long = run(config(policy, tmp_path, data, **values))
    assert long.folder == short.folder and ending(long)[0] == wanted[0]
    assert sum(asked) == 54 + 3 and "23 cached" in RunFolder(long.folder).record["data_notes"][-1]
    assert all(torch.equal(ending(long)[3][name], wanted[3][name]) for name in wanted[3])


def test_only_unknown_pairs_are_computed(policy, tmp_path, asked):
    short = dict(max_steps=20, eval_every=20, save_every=20, batch_size=2, mini_batch_size=2)
    first = run(config(policy, tmp_path, write(tmp_path / "a.jsonl", range(40)), "a", **short))
    assert sum(asked) == 40 and "40 pairs computed" in RunFolder(first.folder).record["data_notes"][-1]
    asked.clear()
    half = run(config(policy, tmp_path, write(tmp_path / "b.jsonl", range(59, 19, -1)), "b", **short))
    assert sum(asked) == 20 and "20 cached" in RunFolder(half.folder).record["data_notes"][-1]
    asked.clear()
    run(
        config(
            policy,
            tmp_path,
            write(tmp_path / "c.jsonl", [5, 5, 41, 5, 30]),
            "c",
            **{**short, "eval_fraction": 0},
        )
    )
    assert asked == []


def test_another_reference_is_never_mixed_in(policy, base_run, tmp_path, told):
    short = dict(max_steps=1, eval_every=1, save_every=1, eval_fraction=0)
    data = write(tmp_path / "a.jsonl", range(12))
    run(config(policy, tmp_path, data, "a", **short))
    other = config(policy, tmp_path, data, "b", reference_checkpoint=str(base_run.model), **short)
    run(other, reporter=told)
    assert "is of another reference: name" in told.text and "reference (" in told.text
    run(config(policy, tmp_path, data, "c", max_length=80, **short), reporter=told)
    assert "max_length (96 there, 80 here)" in told.text
    assert len(caches(tmp_path / "cache")) == 3


def test_fingerprints_follow_the_weights_not_the_place(policy, base_run, tmp_path):
    shutil.copytree(policy, tmp_path / "copy")
    assert (
        weights_fingerprint(policy)
        == weights_fingerprint(str(tmp_path / "copy"))
        != weights_fingerprint(str(base_run.model))
    )
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_fingerprint(str(tmp_path / "copy")) != weights_fingerprint(policy)


def test_two_processes_fill_and_train_as_one(policy, tmp_path):
    data = write(tmp_path / "pairs.jsonl", range(48))
    grouped = dict(group_by_length=True, max_steps=8, eval_every=8, save_every=8)
    alone = ending(
        run(
            config(
                policy,
                tmp_path,
                data,
                "one",
                batch_size=4,
                mini_batch_size=2,
                cache_dir=str(tmp_path / "c1"),
                **grouped,
            )
        )
    )
    two = config(
        policy,
        tmp_path,
        data,
        "two",
        batch_size=2,
        mini_batch_size=2,
        cache_dir=str(tmp_path / "c2"),
        **grouped,
    )
    path = save_config(two, tmp_path / "two.json")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "llmlab",
            "run",
            str(path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (cache,) = caches(tmp_path / "c2")
    assert len(cache) == 8 * 4 + 5 and len(list(cache.folder.glob("parts-*.jsonl"))) == 2
    other = caches(tmp_path / "c1")[0]
    assert (
        len(other) == len(cache)
        and max(abs(cache.get(key) - other.get(key)).max() for key in other._values) < 1e-4
    )
    lines = RunFolder(tmp_path / "two").metrics()
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(alone[0], abs=2e-3)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    shape = dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=128, **shape)).eval()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["lab", "llama"])
def test_values_are_the_plain_sums_over_answers(llama, kind, packed):
    model = small_model() if kind == "lab" else llama
    rng = random.Random(1)
    say = lambda n: [rng.randrange(3, 97) for _ in range(n)]  # noqa: E731
    items = [(say(rng.randint(1, 20)), say(rng.randint(1, 12)), say(rng.randint(1, 12))) for _ in range(9)]
    how = reference.Scoring("cpu", "fp32", 0, packed=packed)
    sums = reference_values(model, items, how)
    tokens = reference_values(model, items, how, stores=TOKENS)
    for index in (1, 2):
        plain = answer_log_probs(model, [item[0] for item in items], [item[index] for item in items], 0)
        torch.testing.assert_close(
            torch.tensor([value[index - 1] for value in sums]), plain, rtol=1e-5, atol=1e-4
        )
        assert [len(value[index - 1]) for value in tokens] == [len(item[index]) for item in items]
        assert [value[index - 1].sum() for value in tokens] == pytest.approx(plain.tolist(), abs=1e-3)


def test_training_and_reference_score_the_answers_alone_and_nothing_else_is_changed(
    policy, tmp_path, monkeypatch
):
    utils, kernel, scored = trl.trainer.utils, trl.kernels.ChunkedLogProbFunction, []
    real = kernel.forward

    def counted(context, states, *rest):
        scored.append(len(states))
        return real(context, states, *rest)

    monkeypatch.setattr(kernel, "forward", staticmethod(counted))
    data = write(tmp_path / "pairs.jsonl", range(2))
    run(config(policy, tmp_path, data, max_steps=1, eval_fraction=0.0, mini_batch_size=2, sample_tokens=0))
    rows = dpo_data(config(policy, tmp_path, data, eval_fraction=0.0), load_tokenizer(policy)).train
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    assert scored == [answers, answers], "one pass of the reference, one of the policy"
    assert utils._use_triton is trl.kernels.chunked_logprob._use_triton


def test_values_that_are_no_numbers_stop_with_one_message(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reference, "reference_values", lambda m, items, *a, **k: [[float("nan"), 0.0]] * len(items)
    )
    with pytest.raises(LabError, match="not finite") as caught:
        run(config(policy, tmp_path, write(tmp_path / "a.jsonl", range(8))))
    assert caught.value.exit_code == 1


def test_the_published_large_recipe_ships(request):
    recipe = load_config(request.config.rootpath / "model_configs" / "olmo3-think-7b-dpo.json")
    assert (recipe.beta, recipe.loss_type, recipe.scheduler, recipe.learning_rate) == (
        5.0,
        "sigmoid_norm",
        "linear",
        1e-6,
    )
    assert (recipe.max_length, recipe.max_prompt_length, recipe.epochs) == (8192, 4096, 1)
    assert recipe.batch_size * recipe.devices == 128 and recipe.warmup_ratio == 0.1
    assert (
        recipe.reference == "sequential"
        and recipe.group_by_length
        and recipe.padding_free
        and recipe.gradient_checkpointing
    )


def test_what_is_overridden_is_still_there():
    """Contract with the pinned TRL: fails when a parent's method or data contract changes."""
    parent = trl.DPOTrainer
    for name, ours in (
        ("_prepare_dataset", DPOTrainer),
        ("_precompute_ref_logps", DPOTrainer),
        ("_get_train_sampler", LabTrainerMixin),
    ):
        assert callable(getattr(parent, name)) and name in ours.__dict__
    assert "epoch=epoch," in inspect.getsource(parent._inner_training_loop)
    import trl.trainer.utils as utils

    assert list(inspect.signature(parent._precompute_ref_logps).parameters) == [
        "self",
        "dataset",
        "name",
        "batch_size",
    ]
    assert "_use_triton" in utils.__dict__ and "compact = _use_triton" in inspect.getsource(
        utils.add_fused_lm_head
    )
    assert 'inputs["ref_chosen_logps"]' in inspect.getsource(parent._compute_loss)


def test_the_order_of_rows_follows_from_seed_epoch_and_rows_alone():
    for order in (LengthGrouped([3, 1, 2] * 20, 4, 7), SeededOrder(60, 7)):
        first, again = list(order), list(order)
        order.set_epoch(1)
        torch.manual_seed(9)
        second = list(order)
        assert first == again != second and sorted(first) == sorted(second) == list(range(60))
        assert order.first(20) == first[:20] and order.first(60) == order.first(1000) == list(range(60))
    library = SeedableRandomSampler(range(60), data_seed=7)
    library.set_epoch(1)
    assert list(library) == list(SeededOrder(60, 8)), "that of accelerate, so runs of older versions go on"


def test_a_cache_serves_items_of_any_number_of_answers(tmp_path):
    model = small_model()
    cache = ReferenceCache.open(tmp_path, {"reference": "x", "stores": SUMS})
    items = [([5, 6], [7, 8, 9]), ([5], [9])]
    keys = [item_key(item) for item in items]
    filled = reference.fill(
        cache,
        items,
        keys,
        lambda: model,
        reference.Scoring("cpu", "fp32", 0),
        SILENT,
    )
    assert filled.computed == 2 and cache.get(keys[0]).shape == (1,)


def llmlab(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "llmlab", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=PATIENCE,
    )


def test_the_cache_from_the_command_line(policy, tmp_path):
    data = write(tmp_path / "a.jsonl", range(12))
    made = config(policy, tmp_path, data, max_steps=6, eval_every=6, save_every=6, cache_dir="cache")
    save_config(made, tmp_path / "dpo.json")
    at = ["--cache-dir", "cache"]
    assert "there is no such folder" in llmlab("cache", "list", *at, cwd=tmp_path).stderr
    (tmp_path / "cache").mkdir()
    assert "none in cache" in llmlab("cache", "list", *at, cwd=tmp_path).stdout
    before = llmlab("cache", "verify", "dpo.json", cwd=tmp_path)
    assert before.returncode == 2 and "holds none of this config's pairs" in before.stderr
    plan = llmlab("check", "dpo.json", cwd=tmp_path)
    assert plan.returncode == 0 and "the reference alone" in plan.stdout and "12 pairs" in plan.stdout
    assert llmlab("run", "dpo.json", cwd=tmp_path).returncode == 0
    assert "12" in llmlab("cache", "list", *at, cwd=tmp_path).stdout
    again = llmlab("cache", "verify", "dpo.json", cwd=tmp_path)
    assert again.returncode == 0 and "12 pairs recomputed" in again.stdout
    assert float(again.stdout.split("difference is ")[1].split()[0]) < 1e-3
    part = next((tmp_path / "cache").glob("*/part-*"))
    part.write_bytes(part.read_bytes()[:-3])
    broken = llmlab("cache", "verify", *at, cwd=tmp_path)
    assert broken.returncode == 2 and "is damaged" in broken.stdout
    refused = llmlab("cache", "clear", *at, cwd=tmp_path)
    assert refused.returncode == 2 and "--yes" in refused.stderr
    assert "freed" in llmlab("cache", "clear", "--yes", *at, cwd=tmp_path).stdout
    gone = llmlab("cache", "clear", "--yes", *at, cwd=tmp_path)
    assert gone.returncode == 2 and "no cache" in gone.stderr


def test_what_is_refused_is_refused_before_the_reference(policy, tmp_path, monkeypatch):
    """No data is read, no model loaded and no cache made for a run that cannot be."""
    data = write(tmp_path / "a.jsonl", range(12))
    short = dict(max_steps=1, eval_every=1, save_every=1, eval_fraction=0)
    folder = run(config(policy, tmp_path, data, **short)).folder
    RunFolder(folder).update(status="stopped")
    shutil.rmtree(tmp_path / "cache")
    reached, prepare = [], dpo.prepare
    monkeypatch.setattr(dpo, "prepare", lambda *arguments: reached.append("prepare") or prepare(*arguments))
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with pytest.raises(LabError, match=r"`adapter` is \"lora\" and was \"none\" so far"):
        run(config(policy, tmp_path, data, adapter="lora", **short))
    with pytest.raises(LabError, match=r"`adapter` is \"lora\" and was \"none\" so far"):
        run(config(policy, tmp_path, data, adapter="lora", **short), resume=str(folder / "checkpoint-1"))
    with (
        run_lock(folder),
        pytest.raises(LabError, match=f"process {os.getpid()} on .* is training in this folder"),
    ):
        run(config(policy, tmp_path, data, **short))
    assert not reached and not (tmp_path / "cache").exists()
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    RunFolder(folder).update(status="done")
    assert run(config(policy, tmp_path, data, **short)).folder != folder and reached == ["prepare"]


def test_a_run_ends_well_while_its_cache_is_cleared_again_and_again(policy, tmp_path):
    data, over, lines = write(tmp_path / "a.jsonl", range(40)), threading.Event(), []

    def look():
        while not over.is_set():
            try:
                lines.extend(clear(matching(tmp_path / "cache", None))[0])
            except LabError:  # there is none
                over.wait(0.001)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = run(
            config(policy, tmp_path, data, max_steps=2, eval_every=2, save_every=2, reference_batch_size=1)
        )
    finally:
        over.set()
        looking.join(PATIENCE)
    assert RunFolder(result.folder).record["status"] == "done"
    assert any(f"skipped, in use by process {os.getpid()} on " in line for line in lines)

"""The dual head: what it learns on held-out pairs, what it costs on SmolLM2's shape, and the same ratios
counted for 7B.

    llmlab quickstart                              # in a folder of its own; makes checkpoints/quickstart
    python benchmarks/dual_head.py learning        # 3 seeds on the quickstart's SFT model
    python benchmarks/dual_head.py generation      # time per token beside the backbone alone, SmolLM2-135M
    python benchmarks/dual_head.py training        # peak memory beside full DPO with a live reference; loss
    parts in 8 steps python benchmarks/dual_head.py sharing         # prompts read once for both answers,
    beside reading them twice python benchmarks/dual_head.py counted         # the 7B shape

Every job of `training` is a process of its own; its peak is its largest resident memory, Python and libraries
included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from alignment import QUICKSTART, careless_pair
from real_model import _packaged, _run, _write

from llmlab.config import DualHeadConfig, preset
from llmlab.data.dual_head import DualHeadCollator
from llmlab.data.tasks import distinct_questions, questions
from llmlab.evaluation.answers import answer
from llmlab.evaluation.pairs import dual_head_figures
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.load import load_model
from llmlab.planning.dual_head import count_dual_head, generation_bytes, generation_flops, training_bytes
from llmlab.planning.parameters import count_parameters
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["learning", "generation", "training", "sharing", "counted"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    if args.part == "learning":
        learning(args.seeds)
    else:
        globals()[args.part]()


def learning(seeds: list[int]) -> None:
    """Right answers before careless ones: held-out figures of each seed,
    and exact match as alignment is turned up.
    """
    work = Path(tempfile.mkdtemp())
    rows = itertools.islice(questions(12, held_out=False), 20_000)
    _write(work / "pairs.jsonl", [pair for row in rows if (pair := careless_pair(*row))])
    test = distinct_questions(400, seed=1)
    pairs = [(p["prompt"], p["chosen"], p["rejected"]) for row in test if (p := careless_pair(*row))]
    results: list[dict[str, float]] = []
    for seed in seeds:
        config = DualHeadConfig(
            backbone=str(QUICKSTART / "sft"),
            datasets=[str(work / "pairs.jsonl")],
            max_length=128,
            batch_size=64,
            gradient_accumulation_steps=1,
            learning_rate=3e-3,
            max_steps=600,
            warmup_steps=20,
            epochs=100,
            eval_every=200,
            save_every=100_000,
            save_best_only=False,
            report_to=[],
            seed=seed,
            output_dir=str(work / f"seed{seed}"),
        )
        result = run(config)
        before = RunFolder(result.folder).metrics()[0]
        model, tokenizer = load_model(str(result.folder / "final"))
        figures = {
            "accuracy before": before["eval_reward_accuracy"],
            **dual_head_figures(model, tokenizer, pairs),
        }
        for alignment in (0.0, 0.5, 1.0, 2.0, 4.0):
            model.alignment = alignment
            figures[f"exact match at {alignment:g}"] = answer(model, tokenizer, test, batch_size=128).accuracy
        figures["seconds"] = result.seconds
        results.append(figures)
        print(seed, json.dumps({name: round(value, 3) for name, value in figures.items()}), flush=True)
    for name in results[0]:
        values = [figures[name] for figures in results]
        print(f"{name:24} mean {statistics.fmean(values):.3f}  spread {statistics.stdev(values):.3f}")


@torch.no_grad()
def generation(tokens: int = 48, rounds: int = 9) -> None:
    """Greedy tokens one by one behind a prompt: medians of rounds that take turns."""
    path = _packaged()
    backbone, tokenizer = load_model(str(path))
    dual = LabDualHeadForCausalLM(LabDualHeadConfig(backbone.config, backbone=str(path)), backbone).eval()
    ids = torch.tensor([tokenizer("The whale swam " * 20)["input_ids"]])
    given: dict[str, Any] = dict(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    speakers = {"backbone": (backbone, {}), "dual head": (dual, {}), "alignment 0": (dual, {"alignment": 0})}
    times: dict[str, list[float]] = {name: [] for name in speakers}
    for number in range(rounds + 1):
        for name, (model, more) in speakers.items():
            began = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), **given, **more)
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - began) / tokens)
    own = statistics.median(times["backbone"])
    for name, values in times.items():
        print(
            f"{name:12} {statistics.median(values) * 1000:.1f} ms a token,"
            f" {statistics.median(values) / own:.3f} x the backbone"
        )
    trained = sum(p.numel() for p in dual.parameters() if p.requires_grad)
    print(f"{trained:,} parameters beside the backbone's {sum(p.numel() for p in backbone.parameters()):,}")


def training(steps: int = 8) -> None:
    """Peak memory and loss parts of a few steps on the same pairs, in the same micro-batches."""
    work = Path(tempfile.mkdtemp())
    rows = list(itertools.islice(questions(3, held_out=False), 2000))
    said = "The answer is {}.".format
    # a whole sentence before a bare number, which a model finds likelier at first, being shorter
    _write(work / "pairs.jsonl", [{"prompt": q, "chosen": said(a), "rejected": a} for _, q, a in rows])
    shared: dict[str, Any] = dict(
        datasets=[str(work / "pairs.jsonl")],
        max_length=96,
        max_prompt_length=64,
        max_steps=steps,
        warmup_steps=0,
        scheduler="none",
        eval_fraction=0.0,
        log_every=1,
        save_every=100_000,
        report_to=[],
    )
    name = str(_packaged())
    dual = dict(backbone=name, batch_size=4, gradient_accumulation_steps=8, learning_rate=2e-4)
    jobs: dict[str, dict[str, Any]] = {
        "dpo": dict(
            kind="dpo",
            policy_checkpoint=name,
            batch_size=32,
            mini_batch_size=4,
            reference="live",
            learning_rate=1e-6,
        ),
        "dual": dict(kind="dual_head", **dual),
        "dual4bit": dict(kind="dual_head", **dual, load_in="4bit"),
    }
    peaks = {}
    for job, values in jobs.items():
        config = work / f"{job}.json"
        config.write_text(json.dumps({**shared, **values, "output_dir": str(work / job)}))
        began = time.perf_counter()
        peaks[job], code = _run([sys.executable, "-m", "llmlab", "run", str(config)], work / f"{job}.log")
        if code:
            print(job, "failed:", (work / f"{job}.log").read_text()[-800:])
            continue
        share, seconds = peaks[job] / peaks["dpo"], time.perf_counter() - began
        print(f"{job:9} peak {peaks[job] / 1e9:.2f} GB, {share:.3f} x DPO's, {seconds:.0f} s")
        lines = RunFolder(work / job).metrics()
        for figure in ("loss", "lm_loss", "preference_loss", "reward_accuracy", "gate_entropy", "alpha"):
            if curve := [round(line[figure], 3) for line in lines if figure in line]:
                print(f"          {figure} {curve}", flush=True)


@torch.no_grad()
def sharing(prompt: int = 256, said: int = 32, pairs: int = 4) -> None:
    """The backbone's pass over pairs with long prompts."""
    backbone, _ = load_model(str(_packaged()))
    dual = LabDualHeadForCausalLM(LabDualHeadConfig(backbone.config, backbone=""), backbone).eval()
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, backbone.config.vocab_size, (count,), generator=draw).tolist()

    rows = []
    for _ in range(pairs):
        chosen = tokens(said)
        rows.append(
            {
                "prompt_ids": tokens(prompt),
                "chosen_ids": chosen,
                "chosen_labels": chosen,
                "rejected_ids": tokens(said),
            }
        )
    batches = {share: DualHeadCollator(0, share=share)(rows) for share in (False, True)}
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(6):
        for share, batch in batches.items():
            began = time.perf_counter()
            dual(**batch)
            if number:
                times[share].append(time.perf_counter() - began)
    apart, together = (statistics.median(times[share]) for share in (False, True))
    about = f"prompts of {prompt}, answers of {said} tokens"
    print(f"twice {apart:.2f} s, once {together:.2f} s: {together / apart:.2f} of the time ({about})")


def counted(context: int = 1024) -> None:
    """The arithmetic for a Llama of 7B."""
    shape = preset("llama-7b")
    made, whole = count_dual_head(shape.d_model, shape.vocab_size), count_parameters(shape).total
    print(
        f"heads {made.head:,} each, gate {made.gate:,}, trained {made.trained:,} of {whole + made.trained:,}:"
        f" {made.trained / (whole + made.trained):.2%}"
    )
    for name, (alone, both) in (
        ("FLOPs", generation_flops(shape, context)),
        ("bytes", generation_bytes(shape, context)),
    ):
        print(f"generation, {name} a token behind {context}: {both:.4g} / {alone:.4g} = {both / alone:.3f}")
    dual, dpo = training_bytes(shape)
    print(
        f"training, bytes of weights, gradients, optimizer, reference: {dual:.4g} / {dpo:.4g} ="
        f" {dual / dpo:.3f}"
    )


if __name__ == "__main__":
    main()

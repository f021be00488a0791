"""Memory as it is predicted before a run, beside the peak that was measured: base training, SFT, LoRA, DPO on
the CPU.

    python benchmarks/memory.py                  # runs every job for 2 steps, a process each
    python benchmarks/memory.py --only base-384  # some of them
    python benchmarks/memory.py --held-out       # those that no figure of the formula was fitted to
    python benchmarks/memory.py --known FILE     # predictions anew beside peaks measured before

    python benchmarks/memory.py --allocated      # what torch allocates instead, counted by its profiler

The peak is the largest resident memory of the process, Python and libraries included. What torch allocates is
what a GPU would have to hold, but for its kernels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from real_model import _packaged, _run, _write

from llmlab.config import parse_config
from llmlab.data.tasks import questions
from llmlab.data.tokenizer import load_tokenizer
from llmlab.models import LabConfig, LabForCausalLM
from llmlab.planning.memory import predicted

TALK = "Tell me about the whale, at some length, and then of the ship and of those who sail in it. " * 12


def jobs(work: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Returns the configs by name, and the names of those that nothing was fitted to.

    Sizes, lengths, batches, optimizers, checkpointing and adapters all differ.
    """
    smol = str(_packaged())
    # conversations of all lengths, so that several share a row, and pairs that are longer than what is kept
    # of them
    _write(
        work / "talk.jsonl",
        [
            {"prompt": q, "completion": f"{a}. {TALK[: 90 + 37 * number % 1000]}"}
            for number, (_, q, a) in enumerate(itertools.islice(questions(3, held_out=False), 200))
        ],
    )
    _write(
        work / "pairs.jsonl",
        [
            {"prompt": f"{q} {TALK}", "chosen": f"It is {a}. {TALK}", "rejected": f"No. {TALK[:-200]}"}
            for _, q, a in itertools.islice(questions(4, held_out=False), 24)
        ],
    )
    shared: dict[str, Any] = dict(
        max_steps=2,
        warmup_steps=0,
        eval_fraction=0.0,
        log_every=1,
        save_every=10_000,
        save_best_only=False,
        report_to=[],
        gradient_accumulation_steps=2,
        sample_tokens=0,
    )
    base = dict(kind="pretrain", datasets=["llmlab:moby-dick"], learning_rate=1e-3, **shared)
    sft = dict(
        kind="sft", datasets=[str(work / "talk.jsonl")], policy_checkpoint=smol, learning_rate=1e-5, **shared
    )
    dpo = dict(
        kind="dpo",
        datasets=[str(work / "pairs.jsonl")],
        policy_checkpoint=smol,
        learning_rate=1e-5,
        max_length=256,
        max_prompt_length=128,
        cache_dir=str(work / "cache"),
        **shared,
    )
    dpo.pop("gradient_accumulation_steps")
    live = {name: value for name, value in dpo.items() if name != "cache_dir"}

    def shape(**values: Any) -> dict[str, Any]:
        return dict(kind="model", tokenizer_name="byte", **values)

    fitted = {
        "base-384": dict(
            **base,
            model=shape(
                vocab_size=16384, d_model=384, n_layers=8, n_heads=6, n_kv_heads=2, d_ff=1024, max_seq_len=512
            ),
            batch_size=8,
        ),
        "base-512-gelu": dict(
            **base,
            model=shape(
                vocab_size=32768,
                d_model=512,
                n_layers=12,
                n_heads=8,
                attention_type="mha",
                d_ff=2048,
                activation="gelu",
                norm_type="layernorm",
                max_seq_len=512,
            ),
            batch_size=6,
        ),
        "base-512-check": dict(
            **base,
            model=shape(
                vocab_size=8192,
                d_model=512,
                n_layers=12,
                n_heads=8,
                n_kv_heads=4,
                d_ff=1536,
                max_seq_len=1024,
            ),
            batch_size=8,
            gradient_checkpointing=True,
        ),
        "base-640-lion": dict(
            **base,
            model=shape(
                vocab_size=50304,
                d_model=640,
                n_layers=10,
                n_heads=10,
                n_kv_heads=2,
                d_ff=1728,
                max_seq_len=256,
            ),
            batch_size=12,
            optimizer="lion",
        ),
        "sft-256": dict(**sft, max_length=256, batch_size=2),
        "sft-512-check": dict(**sft, max_length=512, batch_size=2, gradient_checkpointing=True),
        "lora-256": dict(**sft, max_length=256, batch_size=4, adapter="lora"),
        "lora-512-check": dict(
            **sft, max_length=512, batch_size=4, adapter="lora", gradient_checkpointing=True
        ),
        "dpo-lora": dict(**dpo, adapter="lora", batch_size=4, mini_batch_size=2),
        "dpo-full": dict(**dpo, batch_size=4, mini_batch_size=2),
    }
    held_out = {
        "base-256-long": dict(
            **base,
            model=shape(
                vocab_size=4096,
                d_model=256,
                n_layers=6,
                n_heads=8,
                attention_type="mha",
                d_ff=704,
                max_seq_len=1024,
            ),
            batch_size=10,
        ),
        "base-768-wide": dict(
            **base,
            model=shape(
                vocab_size=32000,
                d_model=768,
                n_layers=12,
                n_heads=12,
                n_kv_heads=4,
                d_ff=2048,
                max_seq_len=256,
            ),
            batch_size=4,
        ),
        "base-448-check": dict(
            **base,
            model=shape(
                vocab_size=24000,
                d_model=448,
                n_layers=16,
                n_heads=7,
                attention_type="mqa",
                d_ff=1216,
                max_seq_len=512,
            ),
            batch_size=16,
            gradient_checkpointing=True,
            optimizer="adafactor",
        ),
        "sft-384-lion": dict(**sft, max_length=384, batch_size=2, optimizer="lion"),
        "sft-128-check": dict(**sft, max_length=128, batch_size=8, gradient_checkpointing=True),
        "lora-128": dict(
            **sft,
            max_length=128,
            batch_size=6,
            adapter="lora",
            lora_r=32,
            lora_dropout=0.0,
            lora_targets="attention",
        ),
        "lora-384-check": dict(
            **sft, max_length=384, batch_size=3, adapter="lora", gradient_checkpointing=True
        ),
        "dpo-full-192": {
            **dpo,
            "max_length": 192,
            "max_prompt_length": 96,
            "batch_size": 8,
            "mini_batch_size": 4,
        },
        "dpo-live-check": dict(
            **live, batch_size=4, mini_batch_size=2, reference="live", gradient_checkpointing=True
        ),
        "base-24-muon": dict(
            **base,
            model=shape(
                vocab_size=8192, d_model=320, n_layers=24, n_heads=5, n_kv_heads=5, d_ff=864, max_seq_len=512
            ),
            batch_size=8,
            gradient_checkpointing=True,
            optimizer="muon",
        ),
        "sft-small-256": dict(
            **{**sft, "policy_checkpoint": str(_small(work))}, max_length=256, batch_size=16
        ),
        "sft-small-512": dict(
            **{**sft, "policy_checkpoint": str(_small(work))}, max_length=512, batch_size=4
        ),
        "sft-small-1024": dict(
            **{**sft, "policy_checkpoint": str(_small(work))}, max_length=1024, batch_size=4
        ),
        "further-256": dict(**{**base, "learning_rate": 1e-5}, init_from=smol, max_length=256, batch_size=2),
        "further-lora": dict(
            **{**base, "learning_rate": 1e-4}, init_from=smol, max_length=384, batch_size=2, adapter="lora"
        ),
        "qlora-256": dict(**sft, max_length=256, batch_size=4, adapter="qlora"),
        "qlora-128": dict(**sft, max_length=128, batch_size=4, adapter="qlora"),
        "dpo-lora-384": {
            **dpo,
            "max_length": 384,
            "adapter": "lora",
            "lora_r": 64,
            "batch_size": 4,
            "mini_batch_size": 2,
        },
    }
    return {**fitted, **held_out}, set(held_out)


def _small(work: Path) -> Path:
    """Returns a folder with the quickstart's model, not trained."""
    shape = dict(
        vocab_size=1024, d_model=160, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=432, max_seq_len=1024
    )
    LabForCausalLM(LabConfig(**shape)).save_pretrained(work / "small")
    load_tokenizer("byte").save_pretrained(work / "small")
    return work / "small"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--allocated", action="store_true")
    parser.add_argument("--known", type=Path, help="JSON of peaks; measured ones are added")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    known = json.loads(args.known.read_text()) if args.known and args.known.exists() else {}
    print(f"{'job':16} {'measured':>9} {'predicted':>9}   off  parts in GB")
    every, held_out = jobs(work)
    for name, values in every.items():
        if (args.only and name not in args.only) or (args.held_out and name not in held_out):
            continue
        config = parse_config({**values, "output_dir": str(work / name)})
        if args.allocated:
            sys.path.insert(0, str(Path(__file__).parent.parent))
            from tests.planning.counting import allocated

            print(f"{name} {allocated(config) / 1e9:.3f} {predicted(config).allocated / 1e9:.3f}", flush=True)
            continue
        if name not in known:
            (work / f"{name}.json").write_text(json.dumps({**values, "output_dir": str(work / name)}))
            peak, code = _run(
                [sys.executable, "-m", "llmlab", "run", str(work / f"{name}.json")], work / f"{name}.log"
            )
            shutil.rmtree(work / name, ignore_errors=True)
            if code:
                print(name, "failed:", (work / f"{name}.log").read_text()[-400:])
                continue
            known[name] = peak
            if args.known:
                args.known.write_text(json.dumps(known))
        made = predicted(config)
        parts = "  ".join(f"{part} {value / 1e9:.2f}" for part, value in made.parts().items() if value > 5e6)
        off = made.total / known[name] - 1
        print(
            f"{name:16} {known[name] / 1e9:6.2f} GB {made.total / 1e9:6.2f} GB {off:+5.0%}  {parts}",
            flush=True,
        )


if __name__ == "__main__":
    main()

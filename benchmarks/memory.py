"""Memory as it is predicted before a run, beside the peak that was measured: base training, SFT, LoRA, DPO on the CPU.

    python benchmarks/memory.py                  # runs every job for 3 steps, a process each
    python benchmarks/memory.py --only base-384  # some of them
    python benchmarks/memory.py --known FILE     # predictions anew beside peaks measured before

The peak is the largest resident memory of the process, Python and libraries included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from real_model import _packaged, _run, _write

from llmlab.config import parse_config
from llmlab.data.tasks import questions
from llmlab.plan.memory import predicted

TALK = "Tell me about the whale, at some length, and then of the ship and of those who sail in it. " * 12


def jobs(work: Path) -> dict[str, dict[str, Any]]:
    """Returns the configs: sizes, lengths, batches, optimizers, checkpointing and adapters all differ."""
    smol = str(_packaged())
    _write(work / "talk.jsonl", [{"prompt": q, "completion": f"{a}. {TALK} {TALK}"} for _, q, a in
                                 itertools.islice(questions(3, held_out=False), 300)])  # fmt: skip
    _write(work / "pairs.jsonl", [{"prompt": f"{q} {TALK}", "chosen": f"It is {a}. {TALK}", "rejected": f"No. {TALK}"}
                                  for _, q, a in itertools.islice(questions(4, held_out=False), 300)])  # fmt: skip
    shared: dict[str, Any] = dict(
        max_steps=3, warmup_steps=0, eval_fraction=0.0, log_every=1, save_every=10_000, save_best_only=False, report_to=[],
        gradient_accumulation_steps=2,
    )  # fmt: skip
    base = dict(kind="pretrain", datasets=["llmlab:moby-dick"], learning_rate=1e-3, **shared)
    sft = dict(kind="sft", datasets=[str(work / "talk.jsonl")], policy_checkpoint=smol, learning_rate=1e-5, **shared)
    dpo = dict(kind="dpo", datasets=[str(work / "pairs.jsonl")], policy_checkpoint=smol, learning_rate=1e-5, max_length=256,
               max_prompt_length=128, cache_dir=str(work / "cache"), **shared)  # fmt: skip
    dpo.pop("gradient_accumulation_steps")

    def shape(**values: Any) -> dict[str, Any]:
        return dict(kind="model", tokenizer_name="byte", **values)

    return {
        "base-384": dict(**base, model=shape(vocab_size=16384, d_model=384, n_layers=8, n_heads=6, n_kv_heads=2, d_ff=1024,
                                             max_seq_len=512), batch_size=8),
        "base-512-gelu": dict(**base, model=shape(vocab_size=32768, d_model=512, n_layers=12, n_heads=8, attention_type="mha",
                                                  d_ff=2048, activation="gelu", norm_type="layernorm", max_seq_len=512),
                              batch_size=6),
        "base-512-check": dict(**base, model=shape(vocab_size=8192, d_model=512, n_layers=12, n_heads=8, n_kv_heads=4,
                                                   d_ff=1536, max_seq_len=1024), batch_size=8, gradient_checkpointing=True),
        "base-640-lion": dict(**base, model=shape(vocab_size=50304, d_model=640, n_layers=10, n_heads=10, n_kv_heads=2,
                                                  d_ff=1728, max_seq_len=256), batch_size=12, optimizer="lion"),
        "sft-256": dict(**sft, max_length=256, batch_size=2),
        "sft-512-check": dict(**sft, max_length=512, batch_size=2, gradient_checkpointing=True),
        "lora-256": dict(**sft, max_length=256, batch_size=4, adapter="lora"),
        "lora-512-check": dict(**sft, max_length=512, batch_size=4, adapter="lora", gradient_checkpointing=True),
        "dpo-lora": dict(**dpo, adapter="lora", batch_size=4, mini_batch_size=2),
        "dpo-full": dict(**dpo, batch_size=4, mini_batch_size=2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--known", type=Path, help="JSON of peaks; measured ones are added")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    known = json.loads(args.known.read_text()) if args.known and args.known.exists() else {}
    print(f"{'job':16} {'measured':>9} {'predicted':>9}   off  parts in GB")
    for name, values in jobs(work).items():
        if args.only and name not in args.only:
            continue
        config = parse_config({**values, "output_dir": str(work / name)})
        if name not in known:
            (work / f"{name}.json").write_text(json.dumps({**values, "output_dir": str(work / name)}))
            peak, code = _run([sys.executable, "-m", "llmlab", "run", str(work / f"{name}.json")], work / f"{name}.log")
            if code:
                print(name, "failed:", (work / f"{name}.log").read_text()[-400:])
                continue
            known[name] = peak
            if args.known:
                args.known.write_text(json.dumps(known))
        made = predicted(config)
        parts = "  ".join(f"{part} {value / 1e9:.2f}" for part, value in made.parts().items() if value > 5e6)
        off = made.total / known[name] - 1
        print(f"{name:16} {known[name] / 1e9:6.2f} GB {made.total / 1e9:6.2f} GB {off:+5.0%}  {parts}", flush=True)


if __name__ == "__main__":
    main()

"""What `llmlab fit` predicts beside what runs really take, on this machine: peak memory of 15 settings.

    python benchmarks/fit.py                   # all of them, a process each: about 10 minutes on two cores
    python benchmarks/fit.py --only sft-lora-512
    python benchmarks/fit.py --known FILE      # predictions anew beside peaks measured before

The configs are `fit`'s own, for a Llama of 38 million random weights and for three models in shapes that ship
with the package, random as well. The peak is the largest resident memory of the process, Python and libraries
included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from real_model import _run, _write

from llmlab.config import save_config
from llmlab.config.loader import apply_changes
from llmlab.config.training import TrainingConfig
from llmlab.data.tasks import questions
from llmlab.models.known_models import known_models
from llmlab.planning.engines import choose_engine
from llmlab.planning.fit import Question, config_of
from llmlab.planning.machines import this_machine

TALK = "Tell me about the whale, at some length, and then of the ship and of those who sail in it. " * 12
LLAMA = dict(
    model_type="llama",
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=1536,
    vocab_size=16384,
    max_position_embeddings=2048,
)
# model ("" for the Llama), method, adapter, tokens of a row, rows of a forward pass, checkpointing
SETTINGS: dict[str, tuple[str, str, Any, int, int, bool]] = {
    "sft-full-256": ("", "sft", "none", 256, 2, False),
    "sft-full-512-c": ("", "sft", "none", 512, 4, True),
    "sft-lora-256": ("", "sft", "lora", 256, 4, False),
    "sft-lora-512": ("", "sft", "lora", 512, 2, False),
    "sft-qlora-256": ("", "sft", "qlora", 256, 2, False),
    "sft-qlora-512-c": ("", "sft", "qlora", 512, 4, True),
    "dpo-full-256": ("", "dpo", "none", 256, 1, False),
    "dpo-lora-256": ("", "dpo", "lora", 256, 2, False),
    "dpo-lora-512-c": ("", "dpo", "lora", 512, 2, True),
    "reward-lora-256": ("", "reward", "lora", 256, 2, False),
    "pretrain-full-384": ("", "pretrain", "none", 384, 2, False),
    "pretrain-lora-512": ("", "pretrain", "lora", 512, 2, False),
    "gpt2-lora-512": ("openai-community/gpt2", "pretrain", "lora", 512, 4, False),
    "pythia-full-256": ("EleutherAI/pythia-160m", "pretrain", "none", 256, 4, False),
    "gemma3-lora-256": ("google/gemma-3-270m", "pretrain", "lora", 256, 4, False),
}


def configs(work: Path) -> dict[str, TrainingConfig]:
    """Returns a config of two updates for each setting."""
    rows = list(itertools.islice(questions(3, held_out=False), 200))
    talk = [
        {"prompt": q, "completion": f"{a}. {TALK[: 90 + 37 * n % 1000]}"} for n, (_, q, a) in enumerate(rows)
    ]
    _write(work / "talk.jsonl", talk)
    for length in (256, 512):  # prompts half as long as they may be, as plans take them to be
        pairs = [
            {
                "prompt": f"{q} {TALK}"[: length // 4],
                "chosen": f"{a}. {TALK * 2}",
                "rejected": f"No. {TALK * 2}",
            }
            for _, q, a in rows[:24]
        ]
        _write(work / f"pairs-{length}.jsonl", pairs)
    made = {}
    for name, (model, kind, adapter, length, batch, checkpointing) in SETTINGS.items():
        sources = {"sft": "talk.jsonl", "dpo": f"pairs-{length}.jsonl", "reward": f"pairs-{length}.jsonl"}
        data = str(work / sources[kind]) if kind in sources else "llmlab:moby-dick"
        where = str(made_apart(model, work))
        question = Question(where, this_machine(), sources=(data,))
        config = config_of(question, kind, adapter, length, batch, checkpointing)
        short: dict[str, Any] = dict(
            max_steps=2, warmup_steps=0, eval_fraction=0.0, log_every=1, save_every=10_000
        )
        short |= dict(save_best_only=False, report_to=[], sample_tokens=0, output_dir=str(work / name))
        if kind == "dpo":
            short |= dict(cache_dir=str(work / "cache"), batch_size=2 * batch)
        else:
            short |= dict(gradient_accumulation_steps=2)
        made[name] = apply_changes(config, short)
    return made


def made_apart(name: str, work: Path) -> Path:
    """Returns a folder with a model of a known shape, not trained, that reads bytes.

    It is made in a process of its own: the peak that Linux reports of a child is at least what its parent
    held when it was started.
    """
    folder = work / (name.split("/")[1] if name else "llama")
    if not folder.exists():
        worker = multiprocessing.get_context("spawn").Process(target=_make, args=(name, folder))
        worker.start()
        worker.join()
    return folder


def _make(name: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llmlab.data.tokenizer import load_tokenizer

    torch.manual_seed(0)
    values = dict(known_models()[name.lower()].config) if name else dict(LLAMA)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(str(values.pop("model_type")), **values))
    model.save_pretrained(folder)
    load_tokenizer("byte").save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--known", type=Path, help="JSON of peaks; measured ones are added")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    known = json.loads(args.known.read_text()) if args.known and args.known.exists() else {}
    print(f"{'setting':18} {'measured':>9} {'predicted':>9}   off", flush=True)
    for name, config in configs(work).items():
        if args.only and name not in args.only:
            continue
        need = choose_engine(config, devices=1, machine=this_machine()).need
        assert need is not None
        if name not in known:
            file = save_config(config, work / f"{name}.json")
            peak, code = _run([sys.executable, "-m", "llmlab", "run", str(file)], work / f"{name}.log")
            shutil.rmtree(work / name, ignore_errors=True)
            if code:
                print(name, "failed:", (work / f"{name}.log").read_text()[-400:])
                continue
            known[name] = peak
            if args.known:
                args.known.write_text(json.dumps(known))
        off = need.total / known[name] - 1
        print(f"{name:18} {known[name] / 1e9:6.2f} GB {need.total / 1e9:6.2f} GB {off:+5.0%}", flush=True)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

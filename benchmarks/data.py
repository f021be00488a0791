"""Data: how fast text becomes packed rows on disk, in how much memory, and what packing gains in training.

    python benchmarks/data.py tokenise --megabytes 10 100
    python benchmarks/data.py packing

`tokenise` compares tokenising + packing + caching with the tokenizer library alone (`encode_batch_fast`, all
cores, its ids taken as lists) on the same text in the same run; each size is a process of its own, whose peak
memory is printed. `packing` trains on short instruction rows (log-normal lengths, median 60 tokens, at most
512) in three kinds of batches, with the lab's model and with a transformers model of the same shape, and
prints useful tokens per second: those that are no padding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LENGTH = 512


def corpus(megabytes: int, folder: Path) -> Path:
    """Writes Moby-Dick again and again, each copy's words changed a little, as JSONL of about this size."""
    from llmlab.config import SourceConfig
    from llmlab.data.packed_text import document_texts

    texts = list(document_texts(SourceConfig(name="llmlab:moby-dick")))
    target = folder / f"{megabytes}mb.jsonl"
    written, copy = 0, 0
    with open(target, "w") as file:
        while written < megabytes * 1_000_000:
            for text in texts:
                line = json.dumps({"text": text.replace("the", f"the{copy}", 20)}, ensure_ascii=False) + "\n"
                written += len(line)
                file.write(line)
            copy += 1
    return target


def tokenise(file: str) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from llmlab.config import PretrainConfig, SourceConfig
    from llmlab.data.packed_text import document_texts, pretrain_data
    from llmlab.data.tokenizer import train_tokenizer
    from llmlab.libraries import quiet_libraries

    quiet_libraries(print)
    tokenizer = train_tokenizer(document_texts(SourceConfig(name="llmlab:moby-dick")), 8192)
    size = Path(file).stat().st_size / 1e6
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    began = time.perf_counter()
    data = pretrain_data(PretrainConfig(datasets=[file], eval_fraction=0), tokenizer, 1024)
    ours = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    texts = [json.loads(line)["text"] for line in Path(file).read_text().splitlines()]
    began = time.perf_counter()
    for start in range(0, len(texts), 500):
        [
            encoding.ids
            for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts[start : start + 500])
        ]
    alone = time.perf_counter() - began
    print(
        f"{size:6.1f} MB: tokenise + pack + cache {size / ours:.2f} MB/s, tokenizer alone {size / alone:.2f}"
        f" MB/s, ratio {alone / ours:.3f}; peak memory {peak:.0f} MB ({base:.0f} MB before); {data.facts}"
    )


def packing(steps: int, batch: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmlab.data.packing import PackedCollator, documents_table, pack, table_rows
    from llmlab.models import LabConfig, LabForCausalLM
    from llmlab.training.engine.memory import tune_malloc

    tune_malloc(sparing=False)
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(60), 0.8, 4000)), 4, LENGTH).astype(int)
    documents = [rng.integers(4, 8192, size) for size in lengths]
    packed = list(table_rows(pack(documents_table({"input_ids": documents}), LENGTH, "best_fit")))
    rng.shuffle(packed)
    rows = [{"input_ids": document} for document in documents]
    per_packed = max(1, round(batch * lengths.mean() / LENGTH))
    collate = PackedCollator(0)
    shape = dict(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=768,
    )
    ours = dict(d_model=256, n_layers=6, n_heads=8, n_kv_heads=4, d_ff=768)
    models = {
        "llmlab": LabForCausalLM(LabConfig(vocab_size=8192, max_seq_len=LENGTH, **ours)),
        "transformers": LlamaForCausalLM(
            LlamaConfig(vocab_size=8192, max_position_embeddings=LENGTH, tie_word_embeddings=True, **shape)
        ),
    }

    def padded(part: list, width: int) -> dict:
        ids, mask = np.zeros((len(part), width), np.int64), np.zeros((len(part), width), np.int64)
        for index, row in enumerate(part):
            ids[index, : len(row["input_ids"])] = row["input_ids"]
            mask[index, : len(row["input_ids"])] = 1
        labels = np.where(mask, ids, -100)
        return {
            name: torch.from_numpy(value)
            for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
        }

    def widest(part: list) -> int:
        return max(len(row["input_ids"]) for row in part)

    kinds = {
        "padded to max_length": lambda i: padded(rows[i * batch : (i + 1) * batch], LENGTH),
        "padded to the longest": lambda i: padded(
            rows[i * batch : (i + 1) * batch], widest(rows[i * batch : (i + 1) * batch])
        ),
        "packed": lambda i: collate(packed[i * per_packed : (i + 1) * per_packed]),
    }
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for step in range(steps + 1):  # the kinds in turn, so that the machine's moods meet all of them
            for kind, make in kinds.items():
                inputs = make(step)
                useful = int((inputs["labels"] != -100).sum())
                began = time.perf_counter()
                model(**inputs, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step:
                    speeds[kind].append(useful / (time.perf_counter() - began))
        middle = {kind: statistics.median(values) for kind, values in speeds.items()}
        figures = ", ".join(f"{kind} {value:,.0f}" for kind, value in middle.items())
        print(
            f"{name}: useful tokens/s {figures}; "
            f"packed is {middle['packed'] / middle['padded to max_length']:.2f} x max_length, "
            f"{middle['packed'] / middle['padded to the longest']:.2f} x longest"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["tokenise", "packing"])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    if given.what == "packing":
        packing(given.steps, given.batch)
    elif given.file:
        tokenise(given.file)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for size in given.megabytes:
                file = corpus(size, Path(folder))
                cache = {
                    **os.environ,
                    "LLMLAB_CACHE": str(Path(folder) / "cache"),
                    "HF_HOME": str(Path(folder) / "hf"),
                }
                subprocess.run(
                    [sys.executable, __file__, "tokenise", "--file", str(file)], check=True, env=cache
                )

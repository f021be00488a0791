"""Training speed and memory of the lab's transformer beside transformers' Qwen2ForCausalLM.

Same process, same weights, same batch, AdamW fused, fp32, steps in turn. Run:  python benchmarks/speed.py
Prints tokens per second of both (median), their ratio, the share of the measured matmul peak; then the peak
memory of one step at a vocabulary of 151,936, each in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import statistics
import subprocess
import sys
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from llmlab.models.convert import from_hf

SHAPES = {  # width, layers, heads, kv heads, feed-forward, vocabulary
    "12.6M, vocabulary 16,384": (320, 6, 5, 1, 1024, 16384),
    "12.6M, vocabulary 8,192": (384, 6, 6, 2, 1024, 8192),
    "57M, vocabulary 16,384": (640, 11, 10, 2, 1728, 16384),
    "57M, vocabulary 32,768": (512, 13, 8, 2, 1408, 32768),
}
MEMORY_SHAPE = (256, 2, 4, 2, 512, 151936)


def peer(shape):
    width, layers, heads, kv, ff, vocab = shape
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=ff,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config).train()


def step(model, optimizer, ids):
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def matmul_peak():
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = min(timed(lambda: a @ b) for _ in range(8))
    return 2 * 2048**3 / best


def timed(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def speed(name, rounds, peak):
    shape = SHAPES[name]
    theirs = peer(shape)
    pair = [
        (m, torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True)) for m in (theirs, from_hf(theirs).train())
    ]
    ids = torch.randint(0, shape[-1], (4, 256))
    losses = [[step(model, optimizer, ids) for _ in range(3)] for model, optimizer in pair]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-3, losses
    times = [[], []]
    for _ in range(rounds):
        for index, (model, optimizer) in enumerate(pair):
            times[index].append(timed(lambda model=model, optimizer=optimizer: step(model, optimizer, ids)))
    parameters = sum(p.numel() for p in theirs.parameters())
    attention = 12 * shape[1] * shape[0] * (256 + 1) / 2
    flops = (6 * parameters + attention) * ids.numel()
    medians = [statistics.median(t) for t in times]
    rates = [ids.numel() / t for t in medians]
    print(
        f"{name} ({parameters / 1e6:.1f}M): transformers {rates[0]:,.0f} tokens/s"
        f" ({flops / medians[0] / peak:.0%} of peak), llmlab {rates[1]:,.0f} tokens/s"
        f" ({flops / medians[1] / peak:.0%} of peak), ratio {medians[0] / medians[1]:.2f}"
    )


def peak_memory(which):
    """Prints the peak memory (GB) that one training step adds to the model's own."""
    model = peer(MEMORY_SHAPE)
    if which == "llmlab":
        model = from_hf(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step(model, optimizer, torch.randint(0, 100, (4, 1024)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--memory-of", choices=["llmlab", "transformers"])
    parser.add_argument(
        "--keep-memory", action="store_true", help="with the lab's allocator setting, for both"
    )
    arguments = parser.parse_args()
    if arguments.memory_of:
        peak_memory(arguments.memory_of)
        return
    if arguments.keep_memory:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, (1 << 31) - 1)
    peak = matmul_peak()
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads; 4 x 256 tokens")
    for name in SHAPES:
        speed(name, arguments.rounds if name.startswith("12") else max(4, arguments.rounds // 2), peak)
    used = {}
    for which in ("transformers", "llmlab"):
        command = [sys.executable, __file__, "--memory-of", which]
        used[which] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        f"peak memory of a step, vocabulary 151,936, 4 x 1024 tokens: transformers {used['transformers']:.2f}"
        f" GB, llmlab {used['llmlab']:.2f} GB, ratio {used['llmlab'] / used['transformers']:.2f}"
    )


if __name__ == "__main__":
    main()

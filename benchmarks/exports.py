"""How exactly exports are read by other programs.

    python benchmarks/exports.py --families 10
    python benchmarks/exports.py MODEL [MODEL ...] --types hf F32 F16 Q8_0 Q4_0

The first exports random architectures of every family, and one with alibi through its own code, and has
transformers read them in a process where llmlab cannot be imported. The second exports models (a run, a
folder, an adapter, a GGUF file) in several types. A line each: the largest difference of logits (of
log-probabilities in llama.cpp), the share of positions with the same likeliest token, the divergence.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch

from llmlab.config.export import ExportOptions
from llmlab.data.tokenizer import token_ids, train_tokenizer
from llmlab.errors import LabError
from llmlab.export.export import export
from llmlab.export.folder import layout, write_folder
from llmlab.export.selftest import Written, expected, read_by_transformers
from llmlab.export.source import Source
from llmlab.models.families import FAMILIES
from tests.conftest import small_model
from tests.models.test_families import random_options, shaken

WORDS = [
    "Call me Ishmael. Some years ago, the whale and the sea. What is 17 + 25? def add(a, b): return a + b"
] * 9


def families(count: int) -> None:
    """Reads `count` random architectures of each family, and one of none."""
    tokenizer = train_tokenizer(WORDS, 280)
    with tempfile.TemporaryDirectory() as folder:
        exports: dict[str, list[Written]] = {}
        for name in [*(family.model_type for family in FAMILIES), "alibi"]:
            for seed in range(count):
                rng = random.Random(f"{name}{seed}")
                torch.manual_seed(seed)
                family = next((family for family in FAMILIES if family.model_type == name), FAMILIES[0])
                options = random_options(family, rng)
                options |= {"positional_encoding": "alibi"} if name == "alibi" else {}
                options |= {"vocab_size": len(tokenizer), **token_ids(tokenizer)}
                model = shaken(small_model(**options))
                source = Source(name, model, tokenizer, "write")
                plan = layout(source)
                place = Path(folder) / f"{name}-{seed}"
                write_folder(plan, place)
                exports.setdefault(name, []).append(
                    Written(place, plan.source, expected(source), plan.own_code)
                )
        outcomes = iter(read_by_transformers(*[one for group in exports.values() for one in group]))
        for name, group in exports.items():
            found = [next(outcomes) for _ in group]
            largest = max(prompt.logits.abs().max().item() for one in group for prompt in one.prompts)
            print(
                f"{name:12} {len(group)} architectures, largest difference"
                f" {max(outcome.difference for outcome in found):.1e} of logits up to {largest:.0f}, same"
                f" likeliest token {min(outcome.agreement for outcome in found):.1%}"
            )


def types(model: str, names: list[str]) -> None:
    """Exports a model in several types."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            to = {"to": "hf"} if name == "hf" else {"to": "gguf", "quantize": name}
            try:
                done = export(model, ExportOptions(**to, output=f"{folder}/{name}"))
            except LabError as error:
                print(f"{model} {name}: {error}")
                continue
            size = sum(file.stat().st_size for file in done.target.iterdir())
            outcome = done.outcome
            print(
                f"{model} {name:6} {size / 1e6:8.1f} MB, difference {outcome.difference:.1e}, same likeliest"
                f" token {outcome.agreement:.1%}, divergence {outcome.divergence:.1e} nats",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--types", nargs="+", default=["hf", "F32", "F16", "Q8_0", "Q4_0"])
    parser.add_argument("--families", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.families:
        families(arguments.families)
    for one in arguments.models:
        types(one, arguments.types)

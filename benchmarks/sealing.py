"""What a sealed checkpoint costs: seconds of writing it, and of those the seal (sync, SHA-256, manifest,
rename).

    python benchmarks/sealing.py [--d-model 512]

The share is of a run that saves every 100 steps of one second. AdamW keeps two values a weight, so a
checkpoint holds twelve bytes a weight.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from llmlab.config import ModelConfig, PretrainConfig
from llmlab.training.engine import checkpointing
from llmlab.training.engine.run import run
from llmlab.training.trainers import base as trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    saving: list[float] = []
    sealing: list[float] = []

    def timed(inner, into):
        def call(*given, **named):
            began = time.perf_counter()
            try:
                return inner(*given, **named)
            finally:
                into.append(time.perf_counter() - began)

        return call

    trainer.LabTrainerMixin._save_checkpoint = timed(trainer.LabTrainerMixin._save_checkpoint, saving)
    checkpointing.write_manifest = timed(checkpointing.write_manifest, sealing)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMLAB_CACHE"] = folder + "/cache"
        shape = ModelConfig(
            tokenizer_name="byte",
            vocab_size=16384,
            d_model=args.d_model,
            n_layers=args.layers,
            n_heads=8,
            n_kv_heads=4,
            d_ff=4 * args.d_model,
            max_seq_len=64,
        )
        result = run(
            PretrainConfig(
                model=shape,
                datasets=["llmlab:moby-dick"],
                max_steps=6,
                save_every=1,
                batch_size=1,
                gradient_accumulation_steps=1,
                eval_fraction=0.0,
                output_dir=folder + "/run",
                report_to=[],
                warmup_steps=0,
            )
        )
        size = sum(file.stat().st_size for file in (Path(result.folder) / "checkpoint-6").iterdir())
    save, seal = statistics.median(saving), statistics.median(sealing)
    print(
        f"{size / 1e6:,.0f} MB: {save:.2f} s to save, {seal:.2f} s of them the seal; {save:.2f} % and"
        f" {seal:.2f} % of 100 s"
    )


if __name__ == "__main__":
    main()

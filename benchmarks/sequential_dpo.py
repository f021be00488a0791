"""Sequential DPO beside TRL's DPOTrainer: memory of the whole job, time per step, filling of the reference's
values.

    python benchmarks/sequential_dpo.py MODEL.gguf [--adapter lora] [--what memory step fill]

Every job is a process of its own on the same real model and the same pairs (long-tailed lengths, cut from
Moby-Dick): ours (sequential, padding-free), TRL with a separate live reference, TRL with
`precompute_ref_log_probs`. Printed: peak resident memory of the whole process, seconds per optimizer step
(median after the first), seconds to fill, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LENGTH, PROMPT = 384, 192


def pairs(path: Path, count: int) -> None:
    """Writes pairs whose answers are pieces of the book, lengths long-tailed (log-normal,
    median 25 words).
    """
    from llmlab.config import SourceConfig
    from llmlab.data.packed_text import document_texts

    words = " ".join(document_texts(SourceConfig(name="llmlab:moby-dick", max_rows=30))).split()
    rng = random.Random(0)

    def piece(median: float) -> str:
        size = max(2, min(260, int(rng.lognormvariate(median, 1.0))))
        start = rng.randrange(len(words) - size)
        return " ".join(words[start : start + size])

    rows = [
        {"prompt": piece(2.5) + f" {i}?", "chosen": piece(3.2), "rejected": piece(3.2)} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def job(kind: str, given: argparse.Namespace) -> None:
    """One job in this process; its figures go to stdout as JSON."""
    import torch

    from llmlab.config import DPOConfig
    from llmlab.data.pairs import dpo_data
    from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
    from llmlab.libraries import quiet_libraries
    from llmlab.models.policy import load_policy
    from llmlab.models.resolve import resolve_model

    quiet_libraries(print)
    work = Path(given.folder)
    values = dict(
        policy_checkpoint=given.model,
        datasets=[str(work / "pairs.jsonl")],
        max_steps=given.steps,
        batch_size=given.batch,
        mini_batch_size=given.batch,
        max_length=LENGTH,
        max_prompt_length=PROMPT,
        learning_rate=1e-6,
        warmup_steps=0,
        eval_fraction=0,
        eval_every=1000,
        save_every=1000,
        log_every=1,
        adapter=given.adapter,
        report_to=[],
        output_dir=str(work / kind),
        save_best_only=True,
    )
    figures: dict[str, float] = {}
    times: list[float] = []

    def clocked(trainer_class):
        step = trainer_class.training_step

        def timed(self, *args, **kwargs):
            began = time.perf_counter()
            loss = step(self, *args, **kwargs)
            times.append(time.perf_counter() - began)
            return loss

        trainer_class.training_step = timed

    if kind == "ours":
        from llmlab.training.engine import run as engine
        from llmlab.training.reference import scorer as reference
        from llmlab.training.trainers import dpo

        clocked(dpo.DPOTrainer)
        dpo.DPOTrainer.save_as = lambda *a, **k: Path(given.folder).mkdir(exist_ok=True)
        fill = reference.fill

        def noted(*args, **kwargs):
            filled = fill(*args, **kwargs)
            figures.update(
                before=filled.memory[0] / 1e9,
                with_reference=filled.memory[1] / 1e9,
                after=filled.memory[2] / 1e9,
            )
            return filled

        def passes(cache, items, keys, load, reporter, **kwargs):
            model = []

            def timed_load():
                model.append(load())
                figures["_loaded"] = time.perf_counter()
                return model.pop()

            filled = noted(cache, items, keys, timed_load, reporter, **kwargs)
            figures["fill"] = time.perf_counter() - figures.pop("_loaded")
            return filled

        reference.fill = passes
        engine.run(DPOConfig(**values, cache_dir=str(work / "cache")))
        cache = next((work / "cache").iterdir())
        figures["bytes_per_pair"] = sum(f.stat().st_size for f in cache.iterdir()) / given.pairs
    else:
        import trl

        config = DPOConfig(**values)
        tokenizer = load_tokenizer(given.model)
        ensure_chat_template(tokenizer)
        data = dpo_data(config, tokenizer).train
        policy = resolve_model(config.policy_checkpoint)
        model, _ = load_policy(policy, config, "cpu", "fp32")
        live = kind == "trl live"
        whole = DPOConfig(**{**values, "adapter": "none"})
        separate = load_policy(policy, whole, "cpu", "fp32")[0] if live else None

        class Prepared(trl.DPOTrainer):  # the pairs are tokenised: the same ids as ours
            def _prepare_dataset(self, dataset, *args, **kwargs):
                return dataset

            def _precompute_ref_logps(self, *args, **kwargs):
                began = time.perf_counter()
                made = super()._precompute_ref_logps(*args, **kwargs)
                figures["fill"] = time.perf_counter() - began
                return made

        clocked(Prepared)
        arguments = trl.DPOConfig(
            output_dir=str(work / kind),
            max_steps=given.steps,
            per_device_train_batch_size=given.batch,
            learning_rate=1e-6,
            max_length=LENGTH,
            precompute_ref_log_probs=not live,
            beta=config.beta,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            logging_steps=1,
            seed=42,
            bf16=False,
            remove_unused_columns=False,
        )
        trainer = Prepared(
            model=model, ref_model=separate, args=arguments, train_dataset=data, processing_class=tokenizer
        )
        trainer.train()
    figures["step"] = statistics.median(times[1:]) if len(times) > 1 else float("nan")
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(figures))
    sys.stdout.flush()
    os._exit(0 if torch is not None else 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--adapter", default="none", choices=["none", "lora"])
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", default=["ours", "trl live", "trl precompute"])
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        job(given.kind, given)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "LLMLAB_CACHE": f"{folder}/data", "HF_HOME": f"{folder}/hf"}
        pairs(Path(folder) / "pairs.jsonl", given.pairs)
        found = {}
        for kind in given.kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{given.adapter:5} {kind:15}",
                "  ".join(f"{name} {value:.2f}" for name, value in found[kind].items()),
                flush=True,
            )
        ours = found.get("ours")
        for kind in found if ours else []:
            if kind != "ours":
                peer = found[kind]
                fill = f", fill {peer['fill'] / ours['fill']:.2f} x as fast" if "fill" in peer else ""
                print(
                    f"ours / {kind}: memory {ours['peak'] / peer['peak']:.2f}, step"
                    f" {ours['step'] / peer['step']:.2f}{fill}"
                )


if __name__ == "__main__":
    main()

"""Run folders as the program leaves them, without training."""

import json

from llmlab.config import SFTConfig

HOSTILE = "</pre><script>alert(1)</script>\x1b[2J\"' onload=x & {{ 7 * 7 }} \u202e $x$ </style>"


def make_run(
    folder,
    seed=1,
    loss=1.0,
    *,
    status="done",
    parent="checkpoints/base/best",
    record=None,
    figures=None,
    sample="Ahab",
    **options,
):
    """Makes a finished SFT run: held-out loss from 2 to `loss` in 10 steps; returns its folder."""
    folder.mkdir(parents=True)
    options = {"policy_checkpoint": parent, "seed": seed, "max_steps": 10, **options}
    ends = {"eval_loss": loss, **(figures or {})}
    lines = [{"step": 0, **dict.fromkeys(ends, 2.0)}]
    lines += [{"step": n, "loss": 3.0 / n, "num_input_tokens_seen": 64 * n} for n in range(1, 11)]
    lines.append({"step": 10, **ends})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [{"step": 0, "prompt": "Who?", "answer": ""}, {"step": 10, "prompt": "Who?", "answer": sample}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    config = SFTConfig(**options).to_json_dict()
    written = {
        "config": {**config, "output_dir": str(folder)},
        "status": status,
        "started": f"2026-01-01T00:00:{seed:02d}+00:00",
        "step": 10,
        "parent": parent,
        "seed": seed,
        "seconds": 65.0,
        "metrics": {f"before_{name}": 2.0 for name in ends} | ends,
        "validation_rows": {"validation": 200},
        "parameters": 1000,
        "trained_parameters": 100,
        **(record or {}),
    }
    (folder / "run.json").write_text(json.dumps(written))
    return folder


def write_model(folder, **adapter):
    """Makes a model folder of a run: an adapter where a base is named."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if adapter:
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder

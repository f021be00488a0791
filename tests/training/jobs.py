"""Short runs of every stage in one process and in two, and how far apart they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from llmlab.config import PretrainConfig, SourceConfig
from tests.training.stages import stage_config
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SHORT = dict(max_steps=4, log_every=1, eval_every=2, save_every=2, warmup_steps=0)
SHORT |= dict(sample_tokens=0, eval_rows=8)
STILL = dict(lora_dropout=0.0, rm_dropout=0.0, gating_dropout=0.0)  # each process draws its own


def several(plan, folder, count=2):
    """Runs configs in the processes of one job; returns what became of each. What they said is in a file."""
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "result.json").unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)),
            *("-m", "tests.training.several", str(folder / "plan.json"), str(folder / "result.json")),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), str(ROOT / "tests" / "shims"), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stderr.txt").write_text(done.stderr)
    return json.loads((folder / "result.json").read_text())


def config_of(stage, policy, folder, processes, **changes):
    """A short run as JSON data, whose updates are over the same rows in any number of processes."""
    values = (
        further(policy, folder) if stage == "pretrain" else stage_config(stage, policy, folder)
    ).to_json_dict()
    changes = {**SHORT, **{name: value for name, value in STILL.items() if name in values}, **changes}
    if "reward_model" in values:
        changes["reward_model"] = ["length | 1 | 4"]
    if "ppo_epochs" in values:
        changes["ppo_epochs"] = 1  # a checkpoint falls between two rollouts, which another number takes over
    for size in ("batch_size", "mini_batch_size"):
        if size in values:
            changes[size] = values[size] // processes
    return {**values, **changes}


def further(policy, folder):
    """A config of continued pretraining."""
    return PretrainConfig(
        init_from=policy,
        datasets=[SourceConfig(name="llmlab:moby-dick", max_rows=20)],
        batch_size=4,
        gradient_accumulation_steps=2,
        max_length=64,
        learning_rate=1e-3,
        eval_fraction=0.15,
        save_best_only=False,
        report_to=[],
        output_dir=str(folder),
    )


def apart(one, other):
    """Returns the largest difference between the weights of two results."""
    weights = [load_file(next((folder / "final").glob("*model.safetensors"))) for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    return max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])

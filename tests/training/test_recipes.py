"""Every shipped recipe runs, at a small scale."""

import json

import pytest

from llmlab.cli.options import load
from llmlab.config.recipes import RECIPES
from llmlab.training.engine.run import run
from tests.conftest import write_rows

pytestmark = pytest.mark.slow  # trains

PAIRS = [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(12)]
ROWS = {
    "dpo": PAIRS,
    "sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
    "pretrain": [{"text": "the whale and the sea and the ship " * 4} for _ in range(60)],
}
SMALL = {
    "dpo": ["max_length=48", "max_prompt_length=24", "batch_size=4", "mini_batch_size=2"],
    "sft": ["max_length=48", "batch_size=2", "gradient_accumulation_steps=2"],
    "pretrain": ["max_steps=3", "warmup_steps=1", "batch_size=2", "gradient_accumulation_steps=2"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_at_a_small_scale(name, base_run, tmp_path, request):
    """The shipped file with a model, rows and a batch that fit here; all else is as it is."""
    kind = RECIPES[name].kind
    data = [{"name": write_rows(tmp_path / "rows.jsonl", ROWS[kind]), "streaming": kind == "pretrain"}]
    changes = [*SMALL[kind], f"datasets={json.dumps(data)}", f"output_dir={tmp_path / 'run'}"]
    changes += ["devices=1", "nodes=1", "parallel=auto", "precision=fp32", "report_to=[]", "eval_fraction=0"]
    if kind == "pretrain":
        base = json.loads((base_run.folder / "run.json").read_text())["config"]["model"]
        changes += [f"model={json.dumps(base)}", "dataloader_workers=0"]
    else:
        changes += [f"policy_checkpoint={base_run.folder}"]
    if kind == "dpo":
        changes += [f"cache_dir={tmp_path / 'cache'}"]
    config = load(request.config.rootpath / "model_configs" / f"{name}.json", changes)
    result = run(config)
    record = json.loads((result.folder / "run.json").read_text())
    epochs = 1 if config.epochs is None else config.epochs
    assert record["planned_steps"] == 3 * epochs and record["status"] == "done" and result.model

"""The diffs of docs/architecture.md, applied to a copy of the package: what they add works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_rows
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent.parent
FILES = {  # that a newcomer touches
    "Add an option": 2,
    "Add a model part": 2,
    "Add a dataset": 1,
    "Add a method": 5,
}
PROGRAM = """
import json, sys
from pathlib import Path

import torch

import llmlab
from llmlab.config import ModelConfig, load_config, parse_config, preset, SourceConfig, SFTConfig
from llmlab.config.chat import ChatSettings
from llmlab.data.pipeline import SourceRows
from llmlab.chat.generation import stream
from llmlab.models import LabForCausalLM
from llmlab.models.transformer.shapes import to_lab_config
from llmlab.models.load import load_model
from llmlab.models.resolve import FITS
from llmlab.planning.plan import make_plan
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from llmlab.ui.menu import Entry, entries

base, rows, folder = sys.argv[1:]
out = {"package": str(Path(llmlab.__file__).parent.parent)}

shape = ModelConfig(**{**preset("tiny").to_json_dict(), "activation": "relu2"})
x = torch.tensor([-2.0, 3.0])
mlp = LabForCausalLM(to_lab_config(shape)).model.layers[0].mlp
out["relu2"] = mlp.activation(x).tolist()

source = SourceConfig(name=rows, like="example/weather")
row = next(iter(SourceRows.of(source, ("prompt_completion",))))[1]
out["row"] = [row["prompt"], row["completion"]]

model, tokenizer = load_model(base)
def answer(**changes):
    settings = ChatSettings(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, **changes})
    return "".join(stream(model, tokenizer, "Call me", settings))
out["greedy"] = answer(temperature=0)
out["min_p 1"] = [answer(min_p=1.0, seed=seed) for seed in (1, 2)]
out["min_p 0"] = [answer(seed=seed) for seed in (1, 2)]

values = dict(policy_checkpoint=base, datasets=[{"name": rows, "like": "example/weather"}], max_steps=3,
              batch_size=4, gradient_accumulation_steps=1, max_length=64, log_every=1, eval_fraction=0.0,
              warmup_steps=0, learning_rate=1e-3, sample_tokens=0, report_to=[], scheduler="none")
def losses(kind, **changes):
    values["output_dir"] = f"{folder}/{kind}-{len(changes)}"
    config = parse_config({"kind": kind, **values, **changes})
    assert make_plan(config).memory
    result = run(config)
    assert result.model
    return [line["loss"] for line in RunFolder(result.folder).metrics() if "loss" in line]
out["sft"] = losses("sft")
out["gamma 0"] = losses("focal", gamma=0.0)
out["gamma 2"] = losses("focal")
out["menu"] = [entry.title for entry in entries() if isinstance(entry, Entry)]
out["chat fits"] = "focal" in FITS["chat"] and "focal" in FITS["dpo"]
print(json.dumps(out))
"""


def sections():
    """The diff of every section that has one."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / "architecture.md").read_text(), flags=re.M)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {title: "".join(re.findall(r"```diff\n(.*?)```", text, re.S)) for title, text in pairs}


def touched(diff):
    return set(re.findall(r"^\+\+\+ b/(\S+)$", diff, re.M))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with every diff applied."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "llmlab", folder / "llmlab", ignore=shutil.ignore_patterns("__pycache__"))
    for title, diff in sections().items():
        if diff:
            (folder / "change.diff").write_text(diff)
            applied = subprocess.run(
                ["git", "apply", "-C1", "change.diff"], cwd=folder, capture_output=True, text=True
            )
            assert applied.returncode == 0, f"{title}: {applied.stderr}"
    return folder


def test_each_addition_touches_as_many_files_as_the_page_promises():
    assert {title: len(touched(diff)) for title, diff in sections().items() if diff} == FILES


@pytest.mark.slow
def test_what_a_newcomer_adds_works(copy, base_run, tmp_path):
    rows = [{"asked": f"Will it rain on day {i}?", "said": "Aye." if i % 2 else "Nay."} for i in range(24)]
    arguments = [str(base_run.folder), write_rows(tmp_path / "rows.jsonl", rows), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["package"] == str(copy), "it ran on the copy"
    assert out["relu2"] == [0.0, 9.0]
    assert out["row"] == [[{"role": "user", "content": "Will it rain on day 0?"}], "Nay."]
    assert out["min_p 1"] == [out["greedy"]] * 2, "only the likeliest token is left"
    assert out["min_p 0"][0] != out["min_p 0"][1]
    assert out["gamma 0"] == pytest.approx(out["sft"], rel=1e-4) and len(out["sft"]) == 3
    assert all(0 < focal < plain for focal, plain in zip(out["gamma 2"], out["sft"], strict=True))
    assert "Fine-tuning with focal loss" in out["menu"] and out["chat fits"]

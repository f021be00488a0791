"""The private names of the libraries: each is there and means what it is taken for; no other is used."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import llmlab
from llmlab.errors import LabError
from llmlab.training.compat import PRIVATE, Private, require

ROOT = Path(llmlab.__file__).parent
PYTHONS = {"_abc_impl", "_backward_cls"}  # set by abc and by torch.autograd on every subclass
LIBRARIES = {
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "torch",
    "questionary",
    "prompt_toolkit",
    "datasets",
}
PARAMETERS = {
    "_get_train_sampler": ["train_dataset"],
    "_prepare_for_training": ["max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_save_checkpoint": ["model", "trial"],
    "_get_output_dir": ["trial"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_scaler": ["checkpoint"],
    "_load_rng_state": ["checkpoint"],
    "_prepare_inputs": ["inputs"],
}


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: f"{private.owner}.{private.name}")
def test_it_is_there(private):
    found = require(private)
    if inspect.isroutine(found):
        parameters = [name for name in inspect.signature(found).parameters if name != "self"]
        assert parameters == PARAMETERS.get(private.name, parameters)
        return
    if not private.attribute:
        return
    module, _, cls = private.owner.rpartition(".")
    owner = getattr(importlib.import_module(module), cls)
    source = inspect.getsource(inspect.getmodule(owner))
    assert private.name in source


def test_a_name_that_is_gone_says_so_with_the_version():
    with pytest.raises(LabError, match=r"transformers\.Trainer of transformers 5\.\d+.* has no `_gone`"):
        require(Private("transformers.Trainer", "_gone", "a test"))


def test_a_trainers_module_looks_at_import(monkeypatch):
    gone = Private("trl.DPOTrainer", "_gone", "a test")
    monkeypatch.setattr("llmlab.training.compat.PRIVATE", (gone,))
    with pytest.raises(LabError, match="has no `_gone`"):
        importlib.reload(importlib.import_module("llmlab.training.trainers.dpo"))


def trees():
    for path in sorted(ROOT.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def test_no_other_private_name_is_read_or_set():
    own, used = set(), {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[:2] != "__":
                mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if mine and isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                used.setdefault(node.attr, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    listed = {private.name for private in PRIVATE}
    public = {"_exit"}  # of `os`, which documents it
    assert not {name: places for name, places in used.items() if name not in own | listed | public}


def test_no_other_private_method_is_overridden():
    listed, wrong = {private.name for private in PRIVATE}, set()
    for module in pkgutil.walk_packages(llmlab.__path__, "llmlab."):
        for cls in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(cls) or not cls.__module__.startswith("llmlab"):
                continue
            for name in vars(cls):
                if not name.startswith("_") or name.startswith("__") or name in PYTHONS:
                    continue
                bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
                if any(name in vars(base) for base in bases) and name not in listed:
                    wrong.add(f"{cls.__module__}.{cls.__qualname__}.{name}")
    assert not wrong


def test_every_listed_name_is_used():
    text = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if path.name != "compat.py")
    text += "\n".join((ROOT / "training" / "compat.py").read_text().split(")\n\n", 1)[1:])
    assert not [private.name for private in PRIVATE if not re.search(rf"\b{private.name}\b", text)]

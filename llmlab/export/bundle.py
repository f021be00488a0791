"""The lab's modelling code inside an exported folder, so that it loads where llmlab is not installed.

transformers reads the classes that `auto_map` in config.json names from Python files beside it
(`trust_remote_code=True`). The files are those of `llmlab.models`, with imports made relative and without the
lines that register the lab's names.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from llmlab.files import write_text_atomically
from llmlab.models.dual_head.config import LabDualHeadConfig
from llmlab.models.transformer.defaults import DEFAULTS

TRANSFORMER = "llmlab.models.transformer"
DUAL_HEAD = "llmlab.models.dual_head"
FILES = {  # modules -> the files that they become
    f"{TRANSFORMER}.config": "configuration_llmlab",
    f"{TRANSFORMER}.modeling": "modeling_llmlab",
    **{f"{TRANSFORMER}.{name}": name for name in ("attention", "feed_forward", "norms", "ops", "positions")},
    "llmlab.models.slices": "slices",
}
DUAL_HEAD_FILES = {
    f"{DUAL_HEAD}.config": "configuration_dual_head",
    f"{DUAL_HEAD}.modeling": "modeling_dual_head",
    f"{DUAL_HEAD}.gate": "gate",
    "llmlab.models.typed": "typed",
}
WRITTEN = {  # modules of which only a part is needed, written anew
    f"{TRANSFORMER}.defaults": "defaults",
    "llmlab.errors": "lab",
    "llmlab.models.identity": "lab",
}
AUTO_MAP = {
    "AutoConfig": "configuration_llmlab.LabConfig",
    "AutoModel": "modeling_llmlab.LabModel",
    "AutoModelForCausalLM": "modeling_llmlab.LabForCausalLM",
    "AutoModelForSequenceClassification": "modeling_llmlab.LabForSequenceClassification",
}
DUAL_HEAD_AUTO_MAP = {
    "AutoConfig": "configuration_dual_head.LabDualHeadConfig",
    "AutoModelForCausalLM": "modeling_dual_head.LabDualHeadForCausalLM",
}
LAB = '''"""What the model's code takes from the program that it was made with, in short."""


class LabError(ValueError):
    """What is wrong, where, and what to do."""

    def __init__(self, what, *, where="", remedy=""):
        super().__init__(": ".join(part for part in (where, what, remedy) if part))


def check_base(folder, name, *, made):
    """The backbone lies in the same folder: there is nothing to check."""
'''
IMPORT = re.compile(r"^(\s*)from (llmlab[\w.]*) import ", re.MULTILINE)
REGISTRATION = re.compile(r"^Auto\w+\.register\(.*\)\n", re.MULTILINE)


def write_code(folder: Path, config: PreTrainedConfig) -> dict[str, str]:
    """Writes the modelling code that a config of the lab needs, and returns its `auto_map`."""
    dual = isinstance(config, LabDualHeadConfig)
    for module, name in {**FILES, **(DUAL_HEAD_FILES if dual else {})}.items():
        write_text_atomically(folder / f"{name}.py", relative_imports(source_of(module)))
    table = "\n".join(f"    {name!r}: {value!r}," for name, value in DEFAULTS.items())
    write_text_atomically(
        folder / "defaults.py",
        f'"""The options of the architecture and their defaults."""\n\nDEFAULTS = {{\n{table}\n}}\n',
    )
    if dual:
        write_text_atomically(folder / "lab.py", LAB)
    return DUAL_HEAD_AUTO_MAP if dual else AUTO_MAP


def source_of(module: str) -> str:
    """Returns the text of a module of the lab."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def relative_imports(code: str) -> str:
    """Returns the code of a module as it stands beside the others, in a folder of its own."""
    names = {**FILES, **DUAL_HEAD_FILES, **WRITTEN}
    return REGISTRATION.sub("", IMPORT.sub(lambda match: f"{match[1]}from .{names[match[2]]} import ", code))


def with_auto_map(model: PreTrainedModel, auto_map: dict[str, str]) -> PreTrainedModel:
    """Returns the model, its config naming the code that loads it."""
    plain: Any = model.config  # transformers reads this attribute and does not declare it
    plain.auto_map = auto_map
    return model

"""The config files at hand: which there are, and where a new one is saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.ui.prompts import answer, confirm, text

if TYPE_CHECKING:
    from llmlab.config import KindConfig

CONFIGS = Path("model_configs")


def saved_configs() -> list[Path]:
    """Returns the saved configs by name."""
    return sorted(path for pattern in ("*.json", "*.yaml", "*.yml") for path in CONFIGS.glob(pattern))


def kind_of(path: Path) -> str:
    """Returns the kind that a config file says it is, without validating it:
    the menu has to be there at once.
    """
    try:
        if path.suffix != ".json":
            from llmlab.config.yaml_file import read_yaml

            return str(read_yaml(path).data["kind"])
        return str(read_object(path).get("kind"))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def configs_that_name(folder: Path) -> list[Path]:
    """Returns the saved configs whose text names a run's folder."""
    named = json.dumps(str(folder))[1:-1]
    return [path for path in saved_configs() if re.search(rf"[\"' ]{re.escape(named)}", _text(path))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def unused_name(path: Path) -> Path:
    """Returns the first of NAME-2, NAME-3 ... that is not there."""
    number = 2
    while path.with_stem(f"{path.stem}-{number}").exists():
        number += 1
    return path.with_stem(f"{path.stem}-{number}")


def save_as(config: KindConfig, name: str, console: Console) -> Path | None:
    """Saves a config where the person says; None where they do not, and then it is kept as a draft."""
    from llmlab.config import save_config
    from llmlab.ui import drafts

    target = CONFIGS / f"{name}.json"
    while typed := answer(text("Save as", str(target))):
        target = Path(typed)
        if target.exists() and not answer(confirm(f"{target} exists. Replace it?")):
            target = unused_name(target)
            continue
        try:
            path = save_config(config, target)
        except LabError as error:
            console.print(str(error), style="red")
            continue
        console.print(f"saved as {path}")
        return path
    values = {option: getattr(config, option) for option in type(config).model_fields}
    draft = drafts.keep(type(config), values)
    console.print(f"draft saved as {draft}: the next form of this kind offers it")
    return None

"""The docs page of all options, rendered from the fields:
`python -m llmlab.config.docs > docs/options.md`.
"""

from __future__ import annotations

import json
from typing import Any

from llmlab.config.base import LabBaseConfig
from llmlab.config.chat import BatchOptions, ChatSettings
from llmlab.config.evaluation import Task
from llmlab.config.gate import Bound
from llmlab.config.loader import KINDS
from llmlab.config.loading import LoadOptions
from llmlab.config.options import OptionInfo
from llmlab.config.rewards import RewardSource
from llmlab.config.serving import ChatRequest, CompletionRequest, ServeOptions
from llmlab.config.slurm import SlurmConfig
from llmlab.config.sources import SourceConfig


def options_page() -> str:
    """Returns the page as Markdown."""
    parts = ["# Options\n\nRendered from the config fields by `python -m llmlab.config.docs`; do not edit.\n"]
    sections: list[tuple[str, type[LabBaseConfig]]] = [
        (f'`kind: "{kind}"`: {cls.TITLE}', cls) for kind, cls in KINDS.items()
    ]
    sections += [("Sources", SourceConfig), ("Rewards", RewardSource), ("Chat", ChatSettings)]
    sections += [("Tasks of a suite", Task), ("Bounds of a gate", Bound)]
    sections += [("Loading", LoadOptions), ("Batches of prompts", BatchOptions)]
    sections += [
        ("Serving", ServeOptions),
        ("A request", ChatRequest),
        ("A text to continue", CompletionRequest),
        ("Jobs of a cluster", SlurmConfig),
    ]
    for title, cls in sections:
        parts.append(f"\n## {title}\n\n| option | default | what it is |\n| --- | --- | --- |\n")
        for name, info in cls.options().items():
            if name in ("kind", "schema_version"):
                continue
            field = cls.model_fields[name]
            default = (
                "required"
                if field.is_required()
                else f"`{_shown(field.get_default(call_default_factory=True))}`"
            )
            parts.append(f"| `{name}` | {default} | {_about(info)} |\n")
    return "".join(parts)


def _about(info: OptionInfo) -> str:
    text = [info.description]
    text += [f"Unit: {info.unit}."] if info.unit else []
    text += [f"Typical: {info.typical}."] if info.typical else []
    text += [f"Also called `{alias}`." for alias in info.aliases]
    for other, values in info.applies_when.items():
        text.append(f"Only with `{other}` {' or '.join(str(value).lower() for value in values)}.")
    text += [f"<br>`{choice}`: {advice}." for choice, advice in info.choices.items()]
    return " ".join(text).replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(
            [item.line() if isinstance(item, (SourceConfig, RewardSource)) else item for item in value]
        ).replace("|", "\\|")
    return json.dumps(value)


if __name__ == "__main__":
    print(options_page(), end="")

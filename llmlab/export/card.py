"""A model card: what a model is, where it came from, what it was measured at, and how to use and repeat it.

The page is Markdown with the hub's metadata before it, made with huggingface_hub's `ModelCardData`. Whatever
was written by others (names of data, runs and models, values of options) is escaped; paths lose the folders
of this machine; values of secrets are redacted. What is not known is said to be not known.
"""

from __future__ import annotations

import hashlib
import html
import math
import re
from typing import TYPE_CHECKING, Any

from llmlab import __version__
from llmlab.config.base import KindConfig
from llmlab.config.training import TrainingConfig
from llmlab.export.facts import ModelFacts, Stage, is_hub_id, known_source, public, public_name
from llmlab.export.markdown import as_json, escape, fenced, table
from llmlab.export.usage import repository, usage
from llmlab.readable import visible
from llmlab.trust import redact

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

UNKNOWN = "not known"
MARK = re.compile(r"\n<!-- llmlab card ([0-9a-f]{16}) -->\n?\Z")
# options that say where a run is and what stands in sections of their own
ELSEWHERE = {"kind", "schema_version", "name", "datasets", "output_dir", "seed", "report_to", "model"}
NAMES = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}
NO_FIGURE = "-"


def model_card(facts: ModelFacts, *, repo_id: str = "", license_id: str = "") -> str:
    """Returns the card of a model as the text of a README.md.

    Args:
        facts: what is known of it.
        repo_id: where it will be on the hub; left out, a placeholder stands for it.
        license_id: the hub's identifier of its licence; left out, that of the base model where it is known.
    """
    from huggingface_hub import ModelCard

    repo_id = repo_id or repository(facts)
    license_id = license_id or base_license(facts)
    metadata = _metadata(facts, license_id).to_yaml(line_break="\n")
    sections = [
        f"# {escape(repo_id.split('/')[-1])}",
        _summary(facts, license_id),
        "## How to use it",
        usage(facts, repo_id),
        *_training(facts.stages),
        *_figures(facts.stages),
        *_environment(facts.stages),
        *_configs(facts.stages),
    ]
    text = redact("\n\n".join(section for section in sections if section)) + "\n"
    content = str(ModelCard(redact(f"---\n{metadata}\n---\n\n{text}")))
    return f"{content}\n<!-- llmlab card {_digest(content)} -->\n"


def is_own_card(content: str) -> bool:
    """Returns whether a README is a card that this program wrote and nobody changed."""
    content = content.replace("\r\n", "\n")
    mark = MARK.search(content)
    return mark is not None and mark[1] == _digest(content[: mark.start()])


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def base_license(facts: ModelFacts) -> str:
    """Returns the licence that the base's own card names, where that card was downloaded; else ""."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if not facts.hub_base:
        return ""
    file = try_to_load_from_cache(facts.hub_base, "README.md")
    if not isinstance(file, str):
        return ""
    try:
        found = ModelCard.load(file, ignore_metadata_errors=True).data.get("license")
    except Exception:  # of a yaml reader, for a page that others wrote
        return ""
    return found if isinstance(found, str) and re.fullmatch(r"[\w.+-]{1,50}", found) else ""


def _metadata(facts: ModelFacts, license_id: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    sources = [source for stage in facts.stages for source in stage.sources]
    entries = [known_source(source) for source in sources]
    languages = {entry.language for entry in entries if entry}
    known = bool(entries) and all(entries) and not facts.origin and "" not in languages
    datasets = [entry.id if entry else source.name for entry, source in zip(entries, sources, strict=True)]
    results = _results(facts)
    tags = ["llmlab", *dict.fromkeys(stage.kind for stage in facts.stages if stage.config)]
    return ModelCardData(
        license=license_id or None,
        language=sorted(languages) if known else None,
        base_model=facts.hub_base or None,
        datasets=list(dict.fromkeys(name for name in datasets if is_hub_id(name))) or None,
        tags=tags,
        library_name={"adapter": "peft", "gguf": "gguf", "lab": "llmlab"}.get(facts.form, "transformers"),
        pipeline_tag=_task(facts),
        model_name=" ".join(visible(facts.name).split()) if results else None,
        eval_results=results or None,
    )


def _task(facts: ModelFacts) -> str:
    return "text-classification" if facts.scores else "text-generation"


def _results(facts: ModelFacts) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    if not facts.stages:
        return []
    stage = facts.stages[-1]
    names = [public_name(source.name) for source in stage.sources]
    name = " ".join(visible(", ".join(names) or "held-out rows").split())
    kind = names[0] if len(names) == 1 and is_hub_id(names[0]) else "held-out"
    return [
        EvalResult(
            task_type=_task(facts),
            dataset_type=kind,
            dataset_name=f"{name}, held-out rows",
            metric_type=metric,
            metric_value=round(after, 5),
        )
        for metric, (_, after) in stage.figures.items()
        if math.isfinite(after)
    ]


def _summary(facts: ModelFacts, license_id: str) -> str:
    forms = {
        "native": "a model that transformers loads",
        "code": "a model that brings its modelling code (`trust_remote_code=True`)",
        "lab": "a model of an architecture that only llmlab loads",
        "adapter": "an adapter (peft) for a base model",
        "gguf": "a GGUF file for llama.cpp and programs that stand on it",
    }
    count = facts.parameters()
    made = [stage.title for stage in facts.stages]
    rows = [("what it is", forms[facts.form] + (", which scores answers" if facts.scores else ""))]
    if facts.architecture:
        rows.append(("architecture", facts.architecture))
    if count:
        rows.append(("parameters", f"{count:,}" + (" of the adapter" if facts.form == "adapter" else "")))
    if facts.base:
        rows.append(("base model", public_name(facts.base)))
    elif facts.origin:
        rows.append(("made from", public_name(facts.origin)))
    rows.append(("trained by", " -> ".join(made) if made else f"{UNKNOWN}: no record of a run is with it"))
    rows.append(("chat template", "yes" if facts.chats else "no: it continues a text"))
    rows.append(("licence", license_id or UNKNOWN))
    return table(("", ""), [(name, value.replace("`", "")) for name, value in rows])


def _training(stages: tuple[Stage, ...]) -> list[str]:
    sections = ["## How it was trained"] if stages else []
    for number, stage in enumerate(stages, 1):
        sections.append(f"### {number}. {escape(stage.title)}")
        if stage.config is None:
            sections.append("The options of this run are of another version of llmlab and are not shown.")
            continue
        sections.append(_data(stage))
        settings = _settings(stage)
        sections.append(
            "Settings that differ from the defaults:\n\n" + table(("option", "value"), settings)
            if settings
            else "All settings are the defaults."
        )
    return sections


def _data(stage: Stage) -> str:
    read = {
        str(row.get("source")): row for row in stage.record.get("data_rows") or [] if isinstance(row, dict)
    }
    rows = []
    for source in stage.sources:
        entry, counted = known_source(source), read.get(source.name, {})
        name = public_name(source.name) + (f" ({source.subset})" if source.subset else "")
        licence = entry.license if entry else ""
        used = counted.get("kept")
        rows.append((name, source.split, f"{source.weight:g}", _count(used), licence or UNKNOWN))
    return table(("data", "split", "weight", "rows used", "licence"), rows) if rows else ""


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else NO_FIGURE


def _settings(stage: Stage) -> list[tuple[str, str]]:
    config = stage.config
    if not isinstance(config, TrainingConfig):
        return []
    shape = getattr(config, "model", None)  # of a model that began from nothing
    return _changed(config) + (_changed(shape) if isinstance(shape, KindConfig) else [])


def _changed(config: KindConfig) -> list[tuple[str, str]]:
    rows, options = [], config.to_json_dict()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if (
            name in options
            and name not in ELSEWHERE
            and value != field.get_default(call_default_factory=True)
        ):
            rows.append((f"{config.options()[name].title} ({name})", _value(options[name])))
    return rows


def _value(value: Any) -> str:
    shown = public(value)
    if isinstance(shown, list):
        return ", ".join(_value(one) for one in shown)
    if isinstance(shown, dict):
        return ", ".join(f"{name} {_value(one)}" for name, one in shown.items() if one not in (None, [], ""))
    return f"{shown:g}" if isinstance(shown, float) else str(shown)


def _figures(stages: tuple[Stage, ...]) -> list[str]:
    rows = [
        (stage.title, metric.replace("_", " "), _figure(before), _figure(after))
        for stage in stages
        for metric, (before, after) in stage.figures.items()
    ]
    if not rows:
        return []
    text = "Measured on rows that were held out of each stage's own data; before it, and after it."
    return ["## Held-out figures", text, table(("stage", "figure", "before", "after"), rows)]


def _figure(value: float | None) -> str:
    return NO_FIGURE if value is None else f"{value:.4g}"


def _environment(stages: tuple[Stage, ...]) -> list[str]:
    rows = []
    for stage in stages:
        record = stage.record
        device = str(record.get("device") or "")
        hardware = str(record.get("hardware") or NAMES.get(device, device) or UNKNOWN)
        processes = record.get("processes")
        if isinstance(processes, int) and processes > 1:
            hardware = f"{processes} x {hardware}"
        seconds = record.get("seconds")
        took = _duration(seconds) if isinstance(seconds, (int, float)) else UNKNOWN
        step, seed = record.get("step"), record.get("seed")
        rows.append(
            (
                stage.title,
                hardware,
                record.get("precision") or UNKNOWN,
                _count(step),
                took,
                UNKNOWN if seed is None else seed,
            )
        )
    if not rows:
        return []
    last = stages[-1].record
    packages = last.get("packages") if isinstance(last.get("packages"), dict) else {}
    versions = {"llmlab": last.get("llmlab"), "Python": last.get("python"), **(packages or {})}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    header = ("stage", "hardware", "precision", "steps", "duration", "seed")
    return ["## Hardware, time and versions", table(header, rows), f"Versions: {escape(named or UNKNOWN)}."]


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _configs(stages: tuple[Stage, ...]) -> list[str]:
    sections = []
    for number, stage in enumerate(stages, 1):
        if stage.config is None:
            continue
        config = {k: v for k, v in public(stage.config.to_json_dict()).items() if k != "output_dir"}
        config = {k: v for k, v in config.items() if v is not None}
        summary = f"<summary>{number}. {html.escape(stage.title)}</summary>"
        sections.append(f"<details>\n{summary}\n\n{as_json(config)}\n\n</details>")
    if not sections:
        return []
    text = (
        "Save one as `config.json` and run it with llmlab; local files are named without their folders.\n\n"
        + fenced("llmlab run config.json")
    )
    made = f"Made with llmlab {escape(stages[-1].record.get('llmlab') or __version__)}."
    return ["## The configs to repeat it", text, *sections, made]

"""What a form shows: a value, the line above a question, all that is known of an option, a review."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator

from pydantic.fields import FieldInfo
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llmlab.config import METHOD_PRESETS, MODEL_PRESETS, LabBaseConfig
from llmlab.config.base import KindConfig, in_words, members
from llmlab.config.options import OptionInfo, option_info
from llmlab.screen import styled
from llmlab.ui.form_state import FIXED, Origin, default

BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@typing.runtime_checkable
class Lined(typing.Protocol):
    """A block of options that is written as a line: a source, a reward."""

    LINE: typing.ClassVar[tuple[str, ...]]

    def line(self) -> str:
        """Returns the line."""
        ...


def show(value: object) -> str:
    """Returns a value as a form shows it."""
    if isinstance(value, Lined):
        return value.line()
    if isinstance(value, list):
        return "; ".join(show(item) for item in value) or "none"
    if isinstance(value, LabBaseConfig):
        return json.dumps(value.to_json_dict())
    return "none" if value is None else str(value)


def line_class(annotation: object) -> type[LabBaseConfig] | None:
    """Returns the class of a list whose items are written as lines (sources, rewards), or None."""
    kinds = members(annotation)
    inner = typing.get_args(kinds[0]) if len(kinds) == 1 and typing.get_origin(kinds[0]) is list else ()
    item = inner[0] if inner else None
    is_lined = isinstance(item, type) and issubclass(item, LabBaseConfig) and hasattr(item, "line")
    return item if is_lined else None


def heading(info: OptionInfo) -> Text:
    """Returns the line above a question: section, title, description, typical values, unit."""
    parts = [
        info.description,
        f"Typical: {info.typical}." if info.typical else "",
        f"Unit: {info.unit}." if info.unit else "",
    ]
    line = " ".join(part for part in parts if part)
    section = f"{info.section} · " if info.section else ""
    return styled("[dim]{}[/dim][cyan]{}[/cyan] [dim]{}[/dim]", section, info.title, line)


def explanation(cls: type[LabBaseConfig], name: str, origin: Origin | None = None) -> Panel:
    """Returns all that is known of an option: what it does, when to choose what, its rules, its default and
    the presets'.

    Args:
        cls: the config's class.
        name: of the option.
        origin: of the form's values, where its name is to be said.
    """
    field, info = cls.model_fields[name], option_info(cls.model_fields[name])
    lines: list[str | Text] = [info.description]
    lines += [styled("  [bold]{}[/bold]  {}", choice, advice) for choice, advice in info.choices.items()]
    lines += _line_parts(field)
    lines += _rules(field, info)
    if info.typical:
        lines.append(f"Typical: {info.typical}.")
    usual = "none" if field.is_required() else show(default(cls, name))
    if origin and origin.name:
        lines.append(f"{origin.name} has {show(origin.values[name])}; the default is {usual}.")
    else:
        lines.append(f"Default: {usual}.")
    lines += _presets(getattr(cls, "KIND", ""), name)
    if info.applies_when:
        conditions = (
            f"{other} is {' or '.join(map(str, values))}" for other, values in info.applies_when.items()
        )
        lines.append(f"Asked for when {' and '.join(conditions)}.")
    text = Text("\n").join(line if isinstance(line, Text) else Text(line) for line in lines)
    return Panel(text, title=Text(f"{info.title} ({name})"), title_align="left", border_style="cyan")


def _line_parts(field: FieldInfo) -> Iterator[Text]:
    """Yields what the parts of a line mean, where an option is a list of lines."""
    lined = line_class(field.annotation)
    if lined is None:
        return
    parts: tuple[str, ...] = getattr(lined, "LINE", ())
    yield styled("Each is a line [bold]{}[/bold]; what is left out has its default.", " | ".join(parts))
    options = lined.options()
    yield from (styled("  [bold]{}[/bold]  {}", part, options[part].description) for part in parts)


def _rules(field: FieldInfo, info: OptionInfo) -> Iterator[str]:
    """Yields what a value must be."""
    bounds = [
        (words, getattr(rule, bound, None)) for rule in field.metadata for bound, words in BOUNDS.items()
    ]
    numbers = [(words, value) for words, value in bounds if isinstance(value, int | float)]
    if numbers:
        rules = (f"{words} {value:{',' if isinstance(value, int) else 'g'}}" for words, value in numbers)
        yield f"Must be {' and '.join(rules)}{f' {info.unit}' if info.unit else ''}."
    if type(None) in typing.get_args(field.annotation):
        yield "May be left empty."
    if any(getattr(rule, "min_length", None) for rule in field.metadata):
        yield "Must not be empty."
    for rule in field.metadata:
        if pattern := getattr(rule, "pattern", None):
            yield f"Must be made of {in_words(pattern)}."


def _presets(kind: str, name: str) -> Iterator[str]:
    """Yields which values the presets have."""
    sizes = {size: values[name] for size, values in METHOD_PRESETS.get(kind, {}).items() if name in values}
    shapes = MODEL_PRESETS if kind == "model" else {}
    published = {shape: values[name] for shape, values in shapes.items() if name in values}
    for words, by_size in (
        ("Presets, after published recipes of that size", sizes),
        ("Published shapes", published),
    ):
        if by_size:
            yield f"{words}: " + ", ".join(f"{size} {value}" for size, value in by_size.items()) + "."


def review(config: KindConfig, origin: Origin | None = None) -> Table:
    """Returns all values of a config: marked what differs from its origin,
    and noted what is not the default.
    """
    table = Table("option", "value", "", title="review", title_justify="left")
    for name in type(config).model_fields:
        if name in FIXED or config.inapplicable(name):
            continue
        value, usual = getattr(config, name), default(type(config), name)
        note = Text("" if value == usual else f"default {show(usual)}", style="dim")
        if origin is not None and value != origin.values[name]:
            before = show(origin.values[name])
            before = f"{origin.name} has {before}" if origin.name else f"was {before}"
            note = styled("[yellow]changed[/yellow] [dim]{}[/dim]", before)
        table.add_row(name, show(value), note)
    return table

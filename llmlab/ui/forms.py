"""Forms: a config class is walked field by field; every word and rule on the screen comes from the fields."""

from __future__ import annotations

import gc
import json
import re
import signal
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal

import questionary
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llmlab.config import METHOD_PRESETS, MODEL_PRESETS, LabBaseConfig
from llmlab.config.base import KindConfig, as_number, in_words, members, validate, validate_option
from llmlab.config.options import OptionInfo, option_info
from llmlab.config.training import NEWEST
from llmlab.errors import LabError
from llmlab.models.resolve import FITS, check_model
from llmlab.planning.advice import ways_to_fit
from llmlab.planning.plan import make_plan
from llmlab.screen import LabConsole, styled
from llmlab.ui import drafts
from llmlab.ui.plan import live_figures, plan_table, way_in_words
from llmlab.ui.prompts import EXPLAINS, HINT, Back, Cancelled, Explain, ask, select

FIXED = ("kind", "schema_version")
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


ADVANCED = "\0advanced"  # the question whether to look at the advanced options
KEEP, CHANGE, DRAFT, LEAVE = "keep it", "change an option", "keep it as a draft", "throw it away"


def fill_in(config: KindConfig, console: Console | None = None, *, origin: str = "") -> KindConfig | None:
    """Asks for every option that applies, shows the whole, and returns the config; None when the person
    leaves.

    The values of `config` are offered as they are; Enter keeps one. Escape goes back, "?" explains, Ctrl+C
    leaves and offers to keep what was answered as a draft, which the next form of this kind offers. `origin`
    says where the values come from, a preset or a file; the review shows what differs from it.
    """
    gc.freeze()  # what is loaded stays: looking through it for garbage would hold a question up
    console = console or LabConsole()
    cls, values = type(config), {name: getattr(config, name) for name in type(config).model_fields}
    start = dict(values)
    console.print(styled("\n[bold]{}[/bold] [dim]Enter keeps a value · {}[/dim]\n", cls.TITLE, HINT))
    form = Form(cls, values, start, console, origin)
    with form.kept_when_the_terminal_closes():
        while True:
            try:
                if (draft := drafts.kept(cls)) and form.position is None and form.offers_draft:
                    form.offers_draft = False
                    question = "A form of this kind was left. Go on with its answers?"
                    if ask(questionary.confirm(question, default=True), back=False):
                        values.update(draft)
                form.walk()
                made = form.finish()
            except Cancelled:
                made = form.leave()
                if made is Form.ON:
                    continue
            if made is not None:
                drafts.forget(cls)
            return made


class Form:
    """A walk through the options of a config class.

    Args:
        cls: of the config.
        values: by option; changed as answers come.
        start: the values that it began with, for the review.
        console: where it is shown.
        origin: of these values, "" where they are the defaults.

    Attributes:
        position: the option that is asked for; None before the first.
        offers_draft: whether a draft is still to be offered.
    """

    ON = object()  # the person stays

    def __init__(
        self,
        cls: type[KindConfig],
        values: dict[str, Any],
        start: dict[str, Any],
        console: Console,
        origin: str = "",
    ):
        self.cls, self.values, self.start, self.console, self.origin = cls, values, start, console, origin
        self.position: str | None = None
        self.offers_draft = True
        self._advanced = False
        self._answered: set[str] = set()

    def steps(self) -> list[str]:
        """Returns what is asked for with the answers so far, in order."""
        options = self.cls.options()
        asked = {
            advanced: [
                name
                for name, info in options.items()
                if name not in FIXED and info.advanced is advanced and _applies(info, self.values)
            ]
            for advanced in (False, True)
        }
        more = [ADVANCED, *(asked[True] if self._advanced else [])] if asked[True] else []
        return [*asked[False], *more]

    def walk(self) -> None:
        """Asks from the position on to the end; a step back goes to the question before.

        Raises:
            Cancelled: when the person leaves.
        """
        steps = self.steps()
        self.position = self.position if self.position in steps else steps[0]
        while self.position is not None:
            steps = self.steps()
            index = steps.index(self.position)
            try:
                self.ask(self.position, back=index > 0)
            except Back:
                self.position = steps[index - 1]
                continue
            steps = self.steps()  # an answer can add questions, and take some away
            index = steps.index(self.position) + 1
            self.position = steps[index] if index < len(steps) else None

    def ask(self, name: str, *, back: bool) -> None:
        """Asks for one option.

        Raises:
            Cancelled: when the person leaves.
            Back: when they want the question before.
        """
        if name == ADVANCED:
            question = questionary.confirm("Look at the advanced options too?", default=self._advanced)
            self._advanced = ask(question, below=lambda _: HINT.replace(EXPLAINS, ""), back=back)
            return
        offered = _offered(self.cls, name, self.values)
        self.values[name] = self._answer(name, offered, back=back)
        self._answered.add(name)

    def made(self, values: dict[str, Any], *further: str) -> KindConfig:
        """Returns the config of answers; defaults that nobody has looked at follow the other options (warm-up
        the steps).

        Raises:
            LabError: when they do not go together.
        """
        options, kept = self.cls.options(), {}
        for name, value in values.items():
            untouched = (
                name not in self._answered and name not in further and value == _default(self.cls, name)
            )
            if name in FIXED or (_applies(options[name], values) and not untouched):
                kept[name] = value
        return validate(self.cls, kept)

    def below(self, name: str, standing: Any) -> str:
        """Returns the lines below a question: what the answers so far amount to,
        the one that stands there included.
        """
        values = dict(self.values)
        try:
            if name and standing is not None:
                values[name] = _parse(self.cls, name, standing) if isinstance(standing, str) else standing
        except LabError:
            return HINT
        try:
            return "\n".join([*live_figures(self.made(values, name)), HINT])
        except LabError as error:
            return f"{str(error).splitlines()[0]}\n{HINT}"

    def finish(self) -> KindConfig | None:
        """Shows the whole, lets single options be changed, and returns the config; None when it is thrown
        away.

        Raises:
            Cancelled: when the person leaves.
        """
        while True:
            try:
                made = self.made(self.values)
            except LabError as error:
                self.console.print(str(error), style="red")
                named = [name for name in re.findall(r"`(\w+)`", str(error)) if name in self.cls.model_fields]
                for name in dict.fromkeys(named) or self.cls.model_fields:
                    self._change(name)
                continue
            self.console.print(review(made, self.start, self.origin))
            try:
                self.console.print(plan_table(make_plan(made)))
            except LabError as error:  # of a model on the disk: an option can be changed, and nothing is lost
                self.console.print(str(error), style="yellow")
            ways = {f"make it fit: {way_in_words(way)}": way.changes for way in ways_to_fit(made)}
            try:
                choice = ask(select("What now?", [*ways, KEEP, CHANGE, DRAFT, LEAVE]))
                if choice in ways:
                    self.values.update(ways[choice])
                    continue
                if choice == CHANGE:
                    names = [
                        name
                        for name in self.cls.model_fields
                        if name not in FIXED and not made.inapplicable(name)
                    ]
                    question = "Which one? (type to search)"
                    self._change(ask(select(question, names, use_search_filter=True, use_jk_keys=False)))
                    continue
            except Back:
                steps = self.steps()
                self.position = steps[-1]
                self.walk()
                continue
            if choice == KEEP:
                return made
            if choice == DRAFT:
                self.console.print(
                    f"kept as {drafts.keep(self.cls, self.values)}: the next form of this kind offers it"
                )
            else:
                drafts.forget(self.cls)
            return None

    def has_answers(self) -> bool:
        """Returns whether anything was answered otherwise than it was offered."""
        return any(self.values[name] != self.start[name] for name in self.values)

    @contextmanager
    def kept_when_the_terminal_closes(self) -> Iterator[None]:
        """Keeps what was answered as a draft when SIGHUP or SIGTERM ends the program meanwhile."""

        def end(number: int, frame: Any) -> None:
            if self.has_answers():
                drafts.keep(self.cls, self.values)
            raise SystemExit(128 + number)

        before = {number: signal.signal(number, end) for number in (signal.SIGHUP, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave(self) -> Any:
        """Asks what is to become of the answers; returns None to leave, `ON` to stay."""
        if not self.has_answers():
            return None
        try:
            choice = ask(select("Leave the form?", [DRAFT, "go on", LEAVE]), back=False)
        except Cancelled:  # twice: nothing is lost all the same
            choice = DRAFT
        if choice == "go on":
            return Form.ON
        if choice == DRAFT:
            self.console.print(
                f"kept as {drafts.keep(self.cls, self.values)}: the next form of this kind offers it"
            )
        else:
            drafts.forget(self.cls)
        return None

    def _answer(self, name: str, offered: Any, *, back: bool = True) -> Any:
        below, preset = partial(self.below, name), {"start": self.start[name], "origin": self.origin}
        return ask_field(self.cls, name, offered, self.console, back=back, below=below, **preset)

    def _change(self, name: str) -> None:
        with suppress(Back):
            self.values[name] = self._answer(name, self.values[name])
            self._answered.add(name)


def review(config: KindConfig, start: dict[str, Any] | None = None, origin: str = "") -> Table:
    """Returns all values of a config: marked what was changed since `start`,
    and noted what is not the default.
    """
    table = Table("option", "value", "", title="review", title_justify="left")
    for name, field in type(config).model_fields.items():
        if name in FIXED or config.inapplicable(name):
            continue
        value, default = getattr(config, name), field.get_default(call_default_factory=True)
        note = Text("" if value == default else f"default {show(default)}", style="dim")
        if start is not None and value != start[name]:
            before = f"{origin} has {show(start[name])}" if origin else f"was {show(start[name])}"
            note = styled("[yellow]changed[/yellow] [dim]{}[/dim]", before)
        table.add_row(name, show(value), note)
    return table


def show(value: Any) -> str:
    """Returns a value as a form shows it."""
    if hasattr(value, "line"):
        return value.line()
    if isinstance(value, list):
        return "; ".join(show(item) for item in value) or "none"
    if isinstance(value, LabBaseConfig):
        return json.dumps(value.to_json_dict())
    return "none" if value is None else str(value)


def ask_field(
    cls: type[LabBaseConfig],
    name: str,
    value: Any,
    console: Console,
    *,
    back: bool = True,
    below: Callable[[Any], str] | None = None,
    start: Any = None,
    origin: str = "",
) -> Any:
    """Asks for one option until the answer is valid by itself, and returns it; `start` and `origin` as in
    `explanation`.

    Raises:
        Cancelled: when the person leaves.
        Back: when they want the question before.
    """
    info = option_info(cls.model_fields[name])
    console.print(styled("[cyan]{}[/cyan] [dim]{}[/dim]", info.title, _about(info)))
    typed: str | None = None
    while True:
        try:
            if (lined := _lined(members(cls.model_fields[name].annotation))) is not None:
                return _ask_lines(
                    lined,
                    name,
                    value,
                    partial(console.print, explanation(cls, name, start, origin)),
                    back=back,
                    below=below,
                )
            answer = ask(_question(cls, name, value, typed), below=below, back=back, explains=True)
            return _parse(cls, name, answer) if isinstance(answer, _Text) else answer
        except Explain as wish:
            console.print(explanation(cls, name, start, origin))
            typed = wish.typed


class _Text(str):
    """An answer that was typed, and is still to be read."""


def _question(cls: type[LabBaseConfig], name: str, value: Any, typed: str | None) -> questionary.Question:
    field, info = cls.model_fields[name], option_info(cls.model_fields[name])
    kinds = members(field.annotation)
    choices = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal), ())
    if kinds == [bool]:
        return questionary.confirm(name, default=value)
    if choices and len(kinds) == 1:
        default = field.get_default(call_default_factory=True)
        marks = {choice: " (default)" if choice == default else "" for choice in choices}
        shown = [questionary.Choice(f"{c}{marks[c]}  {info.choices.get(c, '')}", c) for c in choices]
        return select(name, shown, default=value)

    def fault(text: str) -> bool | str:
        try:
            parsed = _parse(cls, name, text)
            if getattr(cls, "KIND", "") in FITS and name == cls.STARTS_FROM and parsed != NEWEST:
                check_model(parsed, cls.KIND, ask=False)
        except LabError as error:
            return str(error).splitlines()[0]
        return True

    default = (
        "" if value is None else value if isinstance(value, str) else json.dumps(value, default=_jsonable)
    )
    asked = questionary.text(name, default=default if typed is None else typed, validate=fault)
    take = asked.ask
    asked.ask = lambda **kwargs: None if (text := take(**kwargs)) is None else _Text(text)
    return asked


def explanation(cls: type[LabBaseConfig], name: str, start: Any = None, origin: str = "") -> Panel:
    """Returns all that is known of an option: what it does, when to choose what, its rule, its default and
    the presets'.

    Args:
        cls: the config's class.
        name: of the option.
        start: the value that the form began with, where it has an origin.
        origin: of that value: the name of a preset or of a file.
    """
    field, info = cls.model_fields[name], option_info(cls.model_fields[name])
    lines: list[str | Text] = [info.description]
    lines += [styled("  [bold]{}[/bold]  {}", choice, advice) for choice, advice in info.choices.items()]
    if (lined := _lined(members(field.annotation))) is not None:
        of_line = lined.options()
        lines += [
            styled(
                "Each is a line [bold]{}[/bold]; what is left out has its default.", " | ".join(lined.LINE)
            )
        ]
        lines += [styled("  [bold]{}[/bold]  {}", part, of_line[part].description) for part in lined.LINE]
    bounds = [
        (words, getattr(rule, bound, None)) for rule in field.metadata for bound, words in BOUNDS.items()
    ]
    numbers = [(words, value) for words, value in bounds if isinstance(value, int | float)]
    rules = [f"{words} {value:{',' if isinstance(value, int) else 'g'}}" for words, value in numbers]
    if rules:
        lines.append(f"Must be {' and '.join(rules)}{f' {info.unit}' if info.unit else ''}.")
    if type(None) in typing.get_args(field.annotation):
        lines.append("May be left empty.")
    if any(getattr(rule, "min_length", None) for rule in field.metadata):
        lines.append("Must not be empty.")
    lines += [
        f"Must be made of {in_words(rule.pattern)}."
        for rule in field.metadata
        if getattr(rule, "pattern", None)
    ]
    if info.typical:
        lines.append(f"Typical: {info.typical}.")
    default = show(field.get_default(call_default_factory=True)) if not field.is_required() else "none"
    lines.append(
        f"{origin} has {show(start)}; the default is {default}." if origin else f"Default: {default}."
    )
    kind = getattr(cls, "KIND", "")
    found = {size: values[name] for size, values in METHOD_PRESETS.get(kind, {}).items() if name in values}
    if found:
        lines.append(
            "Presets, after published recipes of that size: "
            + ", ".join(f"{s} {v}" for s, v in found.items())
            + "."
        )
    if kind == "model":
        found = {size: values[name] for size, values in MODEL_PRESETS.items() if name in values}
        lines += (
            ["Published shapes: " + ", ".join(f"{s} {v}" for s, v in found.items()) + "."] if found else []
        )
    if info.applies_when:
        conditions = (
            f"{other} is {' or '.join(map(str, values))}" for other, values in info.applies_when.items()
        )
        lines.append(f"Asked for when {' and '.join(conditions)}.")
    text = Text("\n").join(line if isinstance(line, Text) else Text(line) for line in lines)
    return Panel(text, title=Text(f"{info.title} ({name})"), title_align="left", border_style="cyan")


def _default(cls: type[LabBaseConfig], name: str) -> Any:
    return cls.model_fields[name].get_default(call_default_factory=True)


def _offered(cls: type[LabBaseConfig], name: str, values: dict[str, Any]) -> Any:
    """Returns the value to offer: what a config of the answers so far would take by itself
    (warm-up follows the steps).
    """
    if values[name] != _default(cls, name):
        return values[name]
    given = {
        other: value for other, value in values.items() if other in FIXED or value != _default(cls, other)
    }
    try:
        return getattr(validate(cls, given), name)
    except LabError:
        return values[name]


def _applies(info: OptionInfo, values: dict[str, Any]) -> bool:
    return all(values.get(other) in allowed for other, allowed in info.applies_when.items())


def _about(info: OptionInfo) -> str:
    parts = [
        info.description,
        f"Typical: {info.typical}." if info.typical else "",
        f"Unit: {info.unit}." if info.unit else "",
    ]
    return " ".join(part for part in parts if part)


def _parse(cls: type[LabBaseConfig], name: str, text: str) -> Any:
    """Returns the value that a typed text stands for.

    Raises:
        LabError: when the option does not take it.
    """
    field = cls.model_fields[name]
    text = text.strip()
    if not text and type(None) in typing.get_args(field.annotation):
        return None
    try:
        value: Any = json.loads(text) if str not in members(field.annotation) or text[:1] in '{["' else text
    except (ValueError, RecursionError):  # a text, and whatever else JSON is not
        value = text
    number = as_number(cls, name, text)
    return validate_option(cls, name, value if isinstance(number, str) else number)


def _lined(kinds: list[Any]) -> type[LabBaseConfig] | None:
    """Returns the class of a list whose items are written as lines (sources, rewards), or None."""
    inner = typing.get_args(kinds[0]) if len(kinds) == 1 and typing.get_origin(kinds[0]) is list else ()
    return inner[0] if inner and isinstance(inner[0], type) and hasattr(inner[0], "line") else None


def _ask_lines(
    cls: type[LabBaseConfig],
    name: str,
    value: list[Any],
    explain: Callable[[], None],
    *,
    back: bool,
    below: Callable[[Any], str] | None,
) -> list[Any]:
    """Asks line by line; an emptied line is taken out, an empty one at the end ends the list."""

    def fault(text: str) -> bool | str:
        try:
            if text.strip():
                validate(cls, text.strip())
        except LabError as error:
            return str(error).splitlines()[0]
        return True

    def under(standing: Any) -> str:
        return f"{parts}; an empty line ends the list\n{below(None) if below else HINT}"

    known = {item.line(): item for item in value}
    lines, index = list(known), 0
    parts = " | ".join(cls.LINE)
    while True:
        default = lines[index] if index < len(lines) else ""
        question = questionary.text(f"{name} {index + 1}", default=default, validate=fault)
        try:
            text = ask(question, below=under, back=back or index > 0, explains=True).strip()
        except Back:
            if index == 0:
                raise
            index -= 1
            continue
        except Explain:
            explain()
            continue
        if not text and index >= len(lines):
            return [known.get(line) or validate(cls, line) for line in lines]
        lines[index : index + 1] = [text] if text else []
        index += bool(text)


def _jsonable(value: Any) -> Any:
    return value.to_json_dict() if isinstance(value, LabBaseConfig) else str(value)

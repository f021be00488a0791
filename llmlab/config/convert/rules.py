"""How an option of another tool becomes one of ours: rules are data, read by one small engine.

Every option of the file ends in one of three lists: converted, needless (the lab does it anyway), or left
with the reason. Nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmlab.config.base import KindConfig
from llmlab.errors import LabError


class Unfit(ValueError):
    """A value that no option of ours has; the message is the reason."""


@dataclass(frozen=True)
class To:
    """An option of ours.

    Attributes:
        option: its name.
        values: the values that it has for those of the other tool; empty for any value as it is.
        read: makes the value; raises `Unfit` where there is none.
    """

    option: str
    values: Mapping[Any, Any] = field(default_factory=dict)
    read: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Without:
    """No option of ours, and why."""

    reason: str


@dataclass(frozen=True)
class Needless:
    """No option, because the lab does so anyway: where the value is one of these (empty: any)."""

    reason: str
    values: tuple[Any, ...] = ()


Rule = To | Without | Needless


@dataclass(frozen=True)
class Left:
    """An option that was not converted.

    Attributes:
        name: as the other tool has it.
        value: of it.
        reason: why it was left.
    """

    name: str
    value: Any
    reason: str


@dataclass
class Draft:
    """A conversion on its way.

    Attributes:
        data: options of the other tool that wait.
        cls: the config that it becomes.
        options: of it, so far.
        converted: names of the other tool's options -> names of ours.
        needless: names -> why they need no option.
        left: the others.
        defaults: options of the other tool that the file leaves at their defaults, and ours differ.
    """

    data: dict[str, Any]
    cls: type[KindConfig]
    options: dict[str, Any] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    needless: dict[str, str] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> str:
        """The option that names the model it begins with."""
        return str(getattr(self.cls, "STARTS_FROM", ""))

    def take(self, *names: str, to: str = "") -> Any:
        """Returns the value of the first of these options that is set, and counts it as converted."""
        found = None
        for name in names:
            value = self.data.pop(name, None)
            if value is not None and found is None:
                found = value
                self.converted[name] = to
        return found

    def leave(self, name: str, value: Any, reason: str) -> None:
        """Lists an option as one that was not converted."""
        self.converted.pop(name, None)
        if name in self.defaults:
            del self.defaults[name]  # the file says nothing of it
        else:
            self.left.append(Left(name, value, reason))

    def set(self, option: str, value: Any) -> None:
        """Sets an option of ours."""
        self.options[option] = value

    def apply(self, rules: Mapping[str, Rule]) -> None:
        """Converts what waits by rules; what has none is left."""
        for name, value in [*self.data.items()]:
            del self.data[name]
            if value is None:  # named and not set
                continue
            self._apply(name, value, rules.get(name, Without("llmlab has no such option")))

    def _apply(self, name: str, value: Any, rule: Rule) -> None:
        match rule:
            case Needless(reason, values) if not values or value in values:
                self.needless[name] = reason
            case Needless():
                self.leave(name, value, f"llmlab knows only {rule.values[0]!r}: {rule.reason}")
            case Without(reason):
                self.leave(name, value, reason)
            case To(option) if option not in self.cls.model_fields:
                self.leave(name, value, f"{self.cls.KIND} has no such option")
            case To(option, values, read):
                if values and (not isinstance(value, (str, int, float)) or value not in values):
                    known = ", ".join(str(one) for one in dict.fromkeys(values))
                    self.leave(name, value, f"`{option}` has a value for {known} only")
                    return
                try:
                    self.options[option] = values[value] if values else read(value)
                except Unfit as reason:
                    self.leave(name, value, str(reason))
                else:
                    self.converted[name] = option


def number(value: Any) -> Any:
    """Returns a number that may have been written as a text (YAML 1.1 reads `1e-4` as one)."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise Unfit(f"{value!r} is not a number") from None
    return value


def real(value: Any) -> float:
    """Returns a number as a float."""
    value = number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unfit(f"{value!r} is not a number")
    return float(value)


def whole(value: Any) -> int:
    """Returns a whole number above zero: steps, sizes."""
    value = real(value)
    if not value.is_integer() or value < 1:
        raise Unfit(f"{value:g} is not a whole number of at least 1")
    return int(value)


def named(data: Any, tool: str) -> str:
    """Returns the text of an option that has to be one.

    Raises:
        LabError: when it is another value.
    """
    if not isinstance(data, str):
        raise LabError(f"{data!r} is not a text", where=tool)
    return data

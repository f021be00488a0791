"""What a form knows: the options of a config class, the answers so far, and what is asked next."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from llmlab.config import LabBaseConfig
from llmlab.config.base import KindConfig, validate
from llmlab.config.options import OptionInfo
from llmlab.errors import LabError

FIXED = ("kind", "schema_version")
ADVANCED = "\0advanced"  # the question whether to look at the advanced options


@dataclass(frozen=True)
class Origin:
    """Where a form begins: the name of a preset or a file ("" for neither), and its values."""

    name: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class FormState:
    """The answers of a form.

    Args:
        cls: of the config.
        values: that it begins with, by option.
        origin: the name of where they come from, "" where they are the defaults.
        given: options that were chosen before, which are not asked for.

    Attributes:
        values: by option; changed as answers come.
        position: the option that is asked for; None before the first and behind the last.
        advanced: whether the advanced options are asked for, too.
    """

    def __init__(
        self, cls: type[KindConfig], values: dict[str, Any], origin: str = "", given: Collection[str] = ()
    ):
        self.cls, self.values, self.origin = cls, dict(values), Origin(origin, dict(values))
        self.position: str | None = None
        self.advanced = False
        self.given = frozenset(given)
        self._answered: set[str] = set(given)

    def steps(self) -> list[str]:
        """Returns what is asked for with the answers so far, in order."""
        options = self.cls.options()
        asked: dict[bool, list[str]] = {False: [], True: []}
        for name, info in options.items():
            known = name in FIXED or name in self.given or self.cls.follows(name, self.values)
            if not known and applies(info, self.values):
                asked[info.advanced].append(name)
        more = [ADVANCED, *(asked[True] if self.advanced else [])] if asked[True] else []
        return [*asked[False], *more]

    def forward(self) -> None:
        """Goes to the next question; an answer can have added some, and taken some away."""
        steps = self.steps()
        index = steps.index(self.position) + 1 if self.position in steps else 0
        self.position = steps[index] if index < len(steps) else None

    def backward(self) -> None:
        """Goes to the question before; behind the last one, to the last."""
        steps = self.steps()
        self.position = steps[steps.index(self.position) - 1] if self.position in steps else steps[-1]

    def to_the_end(self) -> None:
        """Takes the rest as it is offered."""
        self.position = None

    def take(self, name: str, value: Any) -> None:
        """Takes the answer to an option."""
        self.values[name] = value
        self._answered.add(name)

    def offered(self, name: str) -> Any:
        """Returns the value to offer: what a config of the answers so far would take by itself
        (warm-up follows the steps).
        """
        value = self.values[name]
        if value != default(self.cls, name):
            return value
        offered = {
            other: answer
            for other, answer in self.values.items()
            if other in FIXED or answer != default(self.cls, other)
        }
        try:
            return getattr(validate(self.cls, offered), name)
        except LabError:
            return value

    def config(self, **further: Any) -> KindConfig:
        """Returns the config of the answers; defaults that nobody has looked at follow the other options
        (warm-up the steps).

        Args:
            **further: answers that are not taken yet.

        Raises:
            LabError: when they do not go together.
        """
        options, values = self.cls.options(), {**self.values, **further}
        looked_at = self._answered | further.keys()
        answered = {
            name: value
            for name, value in values.items()
            if name in FIXED
            or (applies(options[name], values) and (name in looked_at or value != default(self.cls, name)))
        }
        return validate(self.cls, answered)

    def has_answers(self) -> bool:
        """Returns whether anything was answered otherwise than it was offered."""
        return self.values != self.origin.values


def default(cls: type[LabBaseConfig], name: str) -> Any:
    """Returns the default of an option."""
    return cls.model_fields[name].get_default(call_default_factory=True)


def applies(info: OptionInfo, values: dict[str, Any]) -> bool:
    """Returns whether an option applies with the values of the others."""
    return all(values.get(other) in allowed for other, allowed in info.applies_when.items())

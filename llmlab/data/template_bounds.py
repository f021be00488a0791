"""How much a chat template may make: sizes of values, and what filters and methods would make of them.

One expression (`'a' * 10**10`, `'a'|center(10**10)`, a join, a format) works inside a single call of C, where
no timer reaches it: each is looked at before it is done. Nothing longer than `allowing` said is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

LENGTH = 100_000  # characters that a template may add
TIMES_LONGER = 20  # how often it may repeat what it was given
WIDEST_INTEGER = 10_000  # bits
WIDEST_INDENT = 100  # of JSON
# what filters and methods of texts that can make much of little are given, in its order
PARAMETERS: dict[str, tuple[str, ...]] = {
    "center": ("width",),
    "ljust": ("width",),
    "rjust": ("width",),
    "zfill": ("width",),
    "expandtabs": ("tabsize",),
    "indent": ("width", "first", "blank"),
    "wordwrap": ("width", "break_long_words", "wrapstring"),
    "join": ("d", "attribute"),
    "truncate": ("length", "killwords", "end"),
    "replace": ("old", "new", "count"),
    "batch": ("linecount",),
    "slice": ("slices",),
    "tojson": ("ensure_ascii", "indent", "separators"),
    "sum": ("attribute", "start"),
    "urlize": ("trim_url_limit", "nofollow", "target", "rel", "extra_schemes"),
}
WRITE = (
    "string",
    "pprint",
    "tojson",
    "urlencode",
    "xmlattr",
    "escape",
    "e",
    "forceescape",
    "center",
    "indent",
    "replace",
    "upper",
    "lower",
    "title",
    "capitalize",
    "trim",
    "striptags",
    "wordcount",
    "wordwrap",
    "truncate",
    "urlize",
    "safe",
)
DIGITS = re.compile(r"\d+")

_allowed: ContextVar[int] = ContextVar("allowed", default=LENGTH)


class TooMuch(SecurityError):
    """A template would make something larger than it may."""


@contextmanager
def allowing(given: Any) -> Iterator[None]:
    """Lets templates make at most `LENGTH` + `TIMES_LONGER` x the size of what they are given."""
    token = _allowed.set(LENGTH + TIMES_LONGER * weight(given, 1 << 62))
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed() -> int:
    """Returns how many characters may be made."""
    return _allowed.get()


def check(value: Any) -> Any:
    """Returns a value that is not too large."""
    if isinstance(value, str):
        check_size(len(value))
    elif isinstance(value, int):
        if value.bit_length() > WIDEST_INTEGER:
            raise TooMuch("it computes with numbers of thousands of digits")
    else:
        weight(value, allowed())
    return value


def check_size(size: float) -> None:
    """Refuses to make so many characters.

    Raises:
        TooMuch: when they are more than is allowed.
    """
    if size > (most := allowed()):
        raise TooMuch(f"it would make {size:,.0f} characters, more than the {most:,} that it may")


def weight(value: Any, most: int) -> int:
    """Returns about how many characters a value has when it is written out.

    Raises:
        TooMuch: when there are more than `most`.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        total += 1
        if isinstance(item, (str, bytes, bytearray)):
            total += len(item)
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
        elif isinstance(item, Namespace):
            waiting.append(object.__getattribute__(item, "_Namespace__attrs"))
        if total + len(waiting) > most:
            raise TooMuch(f"it would make more than {most:,} characters")
    return total


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that refuses to make too much; it takes its place in the environment."""
    passed = getattr(
        function, "jinja_pass_arg", None
    )  # jinja puts the context or the environment before the value

    def bounded(*args: Any, **kwargs: Any) -> Any:
        start = 1 if passed else 0
        value = bounded_value(name, args[start], args[start + 1 :], kwargs)
        return check(function(*args[:start], value, *args[start + 1 :], **kwargs))

    if passed:
        bounded.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return bounded


def bounded_value(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the value that a filter, or a method of a text, works on.

    Raises:
        TooMuch: when the result would be too large.
    """
    value = counted(value)
    named = {**dict(zip(PARAMETERS.get(name, ()), args, strict=False)), **kwargs}
    if name in PARAMETERS:
        for other in named.values():
            if isinstance(other, int):
                check_size(abs(other))
    if name == "join":
        return joinable(value, named.get("d") or "")
    if name in WRITE and not isinstance(value, str):
        check(value)
    if name == "replace":
        text, old, new = str(value), str(named.get("old", "")), str(named.get("new", ""))
        check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "indent":
        width = named.get("width", 4)
        text = str(value)
        check_size(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
    elif name in ("wordwrap", "urlize", "truncate"):
        added = sum(len(other) for other in named.values() if isinstance(other, str))
        check_size(len(str(value)) * (1 + added / 2))
    elif name == "format":
        check_percent(str(value), kwargs or args)
    elif name == "tojson":
        indent, separators = named.get("indent"), named.get("separators")
        wide = len(indent) if isinstance(indent, str) else indent or 0
        if wide > WIDEST_INDENT or weight(separators, allowed()) > WIDEST_INDENT:
            raise TooMuch(f"it puts more than {WIDEST_INDENT} characters between the values of JSON")
    elif name == "sum" and not isinstance(named.get("start", 0), (int, float)):
        raise TooMuch("it adds values that are not numbers")
    return value


def counted(values: Any) -> Any:
    """Returns values; of an iterator one that ends with `TooMuch` where it has given too much."""
    if not isinstance(values, Iterator):
        return values

    def count() -> Iterator[Any]:
        left = allowed()
        for item in values:
            left -= weight(item, left)
            yield item

    return count()


def joinable(values: Any, separator: Any) -> list[Any] | str:
    """Returns the values of a join, after a look at how long it will be."""
    parts = values if isinstance(values, str) else list(counted(values))
    size = weight(parts, allowed())
    check_size(size + len(parts) * len(str(separator)))
    return parts


def check_percent(pattern: str, arguments: Any) -> None:
    """Looks at what `%` would make of a pattern."""
    places = pattern.count("%")
    size = weight(arguments, allowed())
    check_size(len(pattern) + (places * size if places > 1 and isinstance(arguments, dict) else size))
    for width in DIGITS.findall(pattern):
        check_size(int(width[:20]))
    if "*" in pattern:
        raise TooMuch("it uses a width from its arguments")

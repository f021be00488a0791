"""Chat templates with an end: a template is a program that came with a model, and whatever it does is
bounded.

transformers renders templates in jinja's sandbox, which keeps them from the machine but not from its time and
memory: one expression (`'a' * 10**10`, `'a'|center(10**10)`, a join, a format) works inside a single call of
C, where no timer reaches it. Here every operation, filter, method and literal is looked at before it is done:
nothing longer than `allowed` characters is made. What is left, loops, is ended by a timer of processor time.
The environment is otherwise transformers' own: its filters, globals and extensions are taken from it, so that
a template that ends renders to the same text.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

SECONDS = 1.0  # of the processor, for one conversation; on an idle machine it takes a few thousandths
LENGTH, TIMES_LONGER = (
    100_000,
    20,
)  # characters that a template may add, and how often it may repeat what it was given
LONGEST_TEMPLATE = 100_000  # characters; the longest in use have 30,000
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


class TooLong(BaseException):  # jinja tries things and goes on when they fail with an Exception
    """A template went on for too long."""


class TooMuch(SecurityError):
    """A template would make something larger than it may."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, *, generate: bool
) -> str:
    """Returns what `tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)` does, within
    bounds.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        tools: JSON schemas, or None.
        generate: whether the text ends where the assistant's next answer begins.

    Raises:
        TooLong: after `SECONDS`.
        TooMuch: when it would make a larger text or value than `LENGTH` + `TIMES_LONGER` x what it was given.
        Exception: whatever the template raises.
    """
    from transformers.utils.chat_template_utils import _alias_reasoning_fields, _plain_template_data

    given = {"messages": _plain_template_data(messages), "tools": _plain_template_data(tools)}
    allowed = _allowed.set(LENGTH + TIMES_LONGER * _weight(given, 1 << 62))
    try:
        with at_most(SECONDS):
            template = _compiled(tokenizer.get_chat_template(None, tools))
            cleaned = [
                {key: value for key, value in turn.items() if value is not None} for turn in given["messages"]
            ]
            return template.render(
                **{
                    **tokenizer.special_tokens_map,
                    "messages": _alias_reasoning_fields(cleaned),
                    "tools": given["tools"],
                    "documents": None,
                    "add_generation_prompt": generate,
                },
            )
    finally:
        _allowed.reset(allowed)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `TooLong` after so much time of the processor, where the system has a timer to interrupt with:
    in the main thread of a process.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    if len(template) > LONGEST_TEMPLATE:
        raise TooMuch(f"it has {len(template):,} characters, more than {LONGEST_TEMPLATE:,}")
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    made = BoundedEnvironment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    made.filters.update({name: _bounded_filter(name, function) for name, function in theirs.filters.items()})
    made.globals.update(theirs.globals)
    return made


def _check(value: Any) -> Any:
    """Returns a value that is not too large."""
    if isinstance(value, str):
        _check_size(len(value))
    elif isinstance(value, int):
        if value.bit_length() > WIDEST_INTEGER:
            raise TooMuch("it computes with numbers of thousands of digits")
    else:
        _weight(value, _allowed.get())
    return value


def _check_size(size: float) -> None:
    if size > (allowed := _allowed.get()):
        raise TooMuch(f"it would make {size:,.0f} characters, more than the {allowed:,} that it may")


def _weight(value: Any, most: int) -> int:
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


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that refuses to make too much; it takes its place in the environment."""
    passed = getattr(
        function, "jinja_pass_arg", None
    )  # jinja puts the context or the environment before the value

    def bounded(*args: Any, **kwargs: Any) -> Any:
        start = 1 if passed else 0
        value = _bounded_value(name, args[start], args[start + 1 :], kwargs)
        return _check(function(*args[:start], value, *args[start + 1 :], **kwargs))

    if passed:
        bounded.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return bounded


def _bounded_value(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the value that a filter, or a method of a text, works on.

    Raises:
        TooMuch: when the result would be too large.
    """
    value = _counted(value)
    named = {**dict(zip(PARAMETERS.get(name, ()), args, strict=False)), **kwargs}
    if name in PARAMETERS:
        for other in named.values():
            if isinstance(other, int):
                _check_size(abs(other))
    if name == "join":
        return _joinable(value, named.get("d") or "")
    if name in WRITE and not isinstance(value, str):
        _check(value)
    if name == "replace":
        text, old, new = str(value), str(named.get("old", "")), str(named.get("new", ""))
        _check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "indent":
        width = named.get("width", 4)
        text = str(value)
        _check_size(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
    elif name in ("wordwrap", "urlize", "truncate"):
        added = sum(len(other) for other in named.values() if isinstance(other, str))
        _check_size(len(str(value)) * (1 + added / 2))
    elif name == "format":
        _check_percent(str(value), kwargs or args)
    elif name == "tojson":
        indent, separators = named.get("indent"), named.get("separators")
        wide = len(indent) if isinstance(indent, str) else indent or 0
        if wide > WIDEST_INDENT or _weight(separators, _allowed.get()) > WIDEST_INDENT:
            raise TooMuch(f"it puts more than {WIDEST_INDENT} characters between the values of JSON")
    elif name == "sum" and not isinstance(named.get("start", 0), (int, float)):
        raise TooMuch("it adds up what are no numbers")
    return value


def _counted(values: Any) -> Any:
    """Returns values; of an iterator one that ends with `TooMuch` where it has given too much."""
    if not isinstance(values, Iterator):
        return values

    def count() -> Iterator[Any]:
        left = _allowed.get()
        for item in values:
            left -= _weight(item, left)
            yield item

    return count()


def _joinable(values: Any, separator: Any) -> list[Any] | str:
    """Returns the values of a join, after a look at how long it will be."""
    made = values if isinstance(values, str) else list(_counted(values))
    size = _weight(made, _allowed.get())
    _check_size(size + len(made) * len(str(separator)))
    return made


def _check_percent(pattern: str, arguments: Any) -> None:
    """Looks at what `%` would make of a pattern."""
    places = pattern.count("%")
    weight = _weight(arguments, _allowed.get())
    _check_size(len(pattern) + (places * weight if places > 1 and isinstance(arguments, dict) else weight))
    for width in DIGITS.findall(pattern):
        _check_size(int(width[:20]))
    if "*" in pattern:
        raise TooMuch("it takes a width from its arguments")


class BoundedFormatter(SandboxedFormatter):
    """`str.format` that makes no more than it may."""

    def __init__(self, env: Any, **kwargs: Any):
        super().__init__(env, **kwargs)
        self.made = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Returns the text of one field."""
        _check(value)
        for width in DIGITS.findall(format_spec):
            _check_size(int(width[:20]))
        made = super().format_field(value, format_spec)
        self.made += len(made)
        _check_size(self.made)
        return made

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Returns the value as `!r` or `!s` writes it."""
        return super().convert_field(_check(value), conversion)


class BoundedGenerator(CodeGenerator):
    """Compiles what jinja does not let an environment intercept, so that it goes by the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """`[a, b]`."""
        self._checked(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """`{a: b}`."""
        self._checked(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """`(a, b)`, which can also stand where values are assigned to."""
        if node.ctx == "load":
            self._checked(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _checked(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.checked(")
        visit(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' sandbox, where nothing is made that is larger than it may be."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, finalize=_check)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Returns what a template, a block or a macro printed."""
        made, size, allowed = [], 0, _allowed.get()
        for part in parts:
            size += len(part)
            if size > allowed:
                raise TooMuch(f"it would make more than {allowed:,} characters")
            made.append(part)
        return "".join(made)

    checked = staticmethod(_check)

    @staticmethod
    def joined(parts: Iterable[Any]) -> str:
        """Returns values as one text: `~`."""
        return str_join(_check(tuple(parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`."""
        if operator == "%":
            if isinstance(left, (str, bytes)):
                _check_percent(left if isinstance(left, str) else left.decode("latin-1"), right)
        elif operator == "**":
            if (
                isinstance(left, int)
                and isinstance(right, int)
                and left.bit_length() * abs(right) > WIDEST_INTEGER
            ):
                raise TooMuch("it computes with numbers of thousands of digits")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(value, (int, float)):
                    _check_size(_weight(value, _allowed.get()) * max(times, 0))
        elif isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_size(len(left) + len(right))
        return _check(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Returns `str.format` of a text, which makes no more than it may."""
        if super().wrap_str_format(value) is None:
            return None
        text, mapped = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if mapped:
                if kwargs or len(args) != 1:
                    raise TypeError("format_map() takes exactly one argument")
                args, kwargs = (), args[0]
            return BoundedFormatter(self).vformat(str(text), args, kwargs)

        return formatted

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a method or a global."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, (str, bytes, bytearray)):
            if name == "translate":
                raise TooMuch("it calls `translate`, which no template needs")
            if name == "join" and args:
                args = (_joinable(args[0], owner), *args[1:])
            elif name == "expandtabs":
                _check_size(
                    len(owner)
                    * max([8, *(value for value in (*args, *kwargs.values()) if isinstance(value, int))])
                )
            elif name != "join":
                _bounded_value(name, owner, args, kwargs)
        else:
            args = tuple(map(_counted, args))
        if isinstance(owner, (int, float)):
            for value in (*args, *kwargs.values()):
                if isinstance(value, int):
                    _check_size(abs(value))
        return _check(super().call(__context, __obj, *args, **kwargs))

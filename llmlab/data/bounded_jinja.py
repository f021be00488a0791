"""jinja's sandbox with bounds: every operation, filter, method and literal is looked at before it is done.

The environment is otherwise transformers' own: its filters, globals and extensions are taken from it, so that
a template that ends renders to the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from llmlab.data.template_bounds import (
    DIGITS,
    WIDEST_INTEGER,
    TooMuch,
    allowed,
    bounded_filter,
    bounded_value,
    check,
    check_percent,
    check_size,
    counted,
    joinable,
    weight,
)


@lru_cache(maxsize=1)
def bounded_environment() -> BoundedEnvironment:
    """Returns the environment that all templates are compiled in."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    environment = BoundedEnvironment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    environment.filters.update(
        {name: bounded_filter(name, function) for name, function in theirs.filters.items()}
    )
    environment.globals.update(theirs.globals)
    return environment


class BoundedFormatter(SandboxedFormatter):
    """`str.format` that makes no more than it may."""

    def __init__(self, env: Any, **kwargs: Any):
        super().__init__(env, **kwargs)
        self.made = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Returns the text of one field."""
        check(value)
        for width in DIGITS.findall(format_spec):
            check_size(int(width[:20]))
        text = super().format_field(value, format_spec)
        self.made += len(text)
        check_size(self.made)
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Returns the value as `!r` or `!s` writes it."""
        return super().convert_field(check(value), conversion)


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
        super().__init__(**kwargs, finalize=check)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Returns what a template, a block or a macro printed."""
        pieces, size, most = [], 0, allowed()
        for part in parts:
            size += len(part)
            if size > most:
                raise TooMuch(f"it would make more than {most:,} characters")
            pieces.append(part)
        return "".join(pieces)

    checked = staticmethod(check)

    @staticmethod
    def joined(parts: Iterable[Any]) -> str:
        """Returns values as one text: `~`."""
        return str_join(check(tuple(parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`."""
        if operator == "%":
            if isinstance(left, (str, bytes)):
                check_percent(left if isinstance(left, str) else left.decode("latin-1"), right)
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
                    check_size(weight(value, allowed()) * max(times, 0))
        elif isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            check_size(len(left) + len(right))
        return check(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Returns `str.format` of a text, which makes no more than it may."""
        if super().wrap_str_format(value) is None:
            return None
        text, mapped = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if mapped:
                if kwargs or len(args) != 1:
                    raise TypeError("format_map() takes exactly one argument")
                return BoundedFormatter(self).vformat(str(text), (), args[0])
            return BoundedFormatter(self).vformat(str(text), args, kwargs)

        return formatted

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a method or a global."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, (str, bytes, bytearray)):
            if name == "translate":
                raise TooMuch("it calls `translate`, which no template needs")
            if name == "join" and args:
                args = (joinable(args[0], owner), *args[1:])
            elif name == "expandtabs":
                check_size(
                    len(owner)
                    * max([8, *(value for value in (*args, *kwargs.values()) if isinstance(value, int))])
                )
            elif name != "join":
                bounded_value(name, owner, args, kwargs)
        else:
            args = tuple(map(counted, args))
        if isinstance(owner, (int, float)):
            for value in (*args, *kwargs.values()):
                if isinstance(value, int):
                    check_size(abs(value))
        return check(super().call(__context, __obj, *args, **kwargs))

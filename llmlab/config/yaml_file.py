"""Configs as YAML, read by the core schema of YAML 1.2, so that a value means what it means in JSON.

Notable choices: PyYAML reads YAML 1.1, where `1e-4` is a text, `no` a boolean, `1:30` ninety and a date an
object. The loader here keeps PyYAML's parser and resolves plain values itself; it has no tags, refuses a key
that is named twice, and says the line of what it refuses. What it writes, it reads back the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmlab.files import BadFile, read_bytes

MAX_BYTES = 200_000  # PyYAML's parser is slow; no config is longer
MAX_VALUES = 10_000  # once aliases are written out
MAX_DEPTH = 100
# https://yaml.org/spec/1.2.2/#103-core-schema, with `1e-4` as JSON has it
RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("tag:yaml.org,2002:merge", r"^<<$", "<"),
)
PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        """Returns the next node; a text of brackets alone ends here, and not in Python's recursion."""
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH:
            raise RecursionError
        node: Node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what YAML 1.1 would read as something else, too: other programs read 1.1."""


for _tag, _pattern, _first in RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _tag, re.compile(_pattern), ["" if sign == "\0" else sign for sign in _first]
        )


@dataclass
class YamlData:
    """What a YAML file holds.

    Attributes:
        data: as JSON has it.
        lines: `a.b` -> the line where that option stands, from 1.
    """

    data: Any
    lines: dict[str, int] = field(default_factory=dict)


def read_yaml(path: Path) -> YamlData:
    """Returns the data of a YAML file and where its options stand.

    Raises:
        OSError: when it is not there or cannot be read.
        BadFile: with the line, when it cannot be read as one YAML document of plain data.
    """
    content = read_bytes(path, MAX_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 text ({error.reason} at byte {error.start + 1:,})") from None
    return parse_yaml(text)


def parse_yaml(text: str) -> YamlData:
    """Returns the data of a YAML text and where its options stand.

    Raises:
        BadFile: with the line, when it is not one YAML document of plain data.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise BadFile(_fault(error, text)) from None
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise BadFile(f"is not valid YAML ({' '.join(str(error).split())[:200]})") from None
    except RecursionError:
        raise BadFile(f"is nested more than {MAX_DEPTH} deep") from None
    if node is None:
        raise BadFile("is empty")
    reader = _Reader()
    return YamlData(reader.value(node, "", ()), reader.lines)


def dump_yaml(data: Any) -> str:
    """Returns JSON data as YAML, in the order of its keys."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000)
    return text


def _fault(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "it cannot be parsed"
    if mark is None:
        return f"is not valid YAML ({problem})"
    lines = text.splitlines()
    begin = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in begin[: mark.column + 1] and not begin[: mark.column].strip():
        return f"is not valid YAML (a tab at the beginning of line {mark.line + 1}: indent with spaces)"
    if "single document" in (error.context or ""):
        return f"holds a second document (`---` at line {mark.line + 1}): a config is one"
    return f"is not valid YAML ({problem} at line {mark.line + 1}, column {mark.column + 1})"


class _Reader:
    """Turns nodes into JSON data; counts what aliases repeat."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.count = 0

    def value(self, node: Node, place: str, above: tuple[int, ...]) -> Any:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MAX_VALUES:
            raise BadFile(f"has more than {MAX_VALUES:,} values once its aliases are written out")
        if id(node) in above:
            raise BadFile(f"holds itself: the anchor at line {line} is named within itself")
        if len(above) >= MAX_DEPTH:
            raise BadFile(f"is nested more than {MAX_DEPTH} deep at line {line}")
        if isinstance(node, MappingNode) and node.tag == f"{PREFIX}map":
            return self._mapping(node, place, (*above, id(node)))
        if isinstance(node, SequenceNode) and node.tag == f"{PREFIX}seq":
            inner = (*above, id(node))
            return [self.value(item, f"{place}.{i}", inner) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.tag.removeprefix(PREFIX) in _SCALARS:
            return _scalar(node, line)
        raise BadFile(f"has a tag at line {line} ({node.tag.replace(PREFIX, '!!')[:60]}): leave it out")

    def _mapping(self, node: MappingNode, place: str, above: tuple[int, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{PREFIX}merge":
                inner = self.value(value_node, place, above)
                for block in inner if isinstance(inner, list) else [inner]:
                    if not isinstance(block, dict):
                        raise BadFile(f"merges what is no mapping at line {line} (`<<`)")
                    merged = {**block, **merged}  # the first of several wins
                continue
            if not isinstance(key_node, ScalarNode) or key_node.tag != f"{PREFIX}str":
                shown = key_node.value if isinstance(key_node, ScalarNode) else "a list or a mapping"
                raise BadFile(f"has a key that is no text at line {line} ({str(shown)[:60]!r}): quote it")
            key = str(key_node.value)
            if key in seen:
                raise BadFile(f"names `{key[:60]}` twice, at lines {seen[key]} and {line}: keep one of them")
            seen[key] = line
            inside = f"{place}.{key}" if place else key
            self.lines.setdefault(inside, line)
            data[key] = self.value(value_node, inside, above)
        return {**merged, **data}


_SCALARS = ("str", "int", "float", "bool", "null")


def _scalar(node: ScalarNode, line: int) -> Any:
    text = str(node.value)
    try:
        match node.tag.removeprefix(PREFIX):
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except (ValueError, KeyError):  # a tag on what it does not fit, or more digits than Python reads
        raise BadFile(f"has a value at line {line} that is no {node.tag.removeprefix(PREFIX)}") from None
    return text

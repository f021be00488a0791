"""Generators of bad input, shared by the tests (a fixed count) and `benchmarks/fuzz.py` (a large one).

Each returns bytes of a file, or a name, from a random number generator: the same seed gives the same input.
"""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

TEXTS = [
    "", " ", "-", ".", "..", "[/]", "[bold]x", "\x1b[2Jx", "\x00", "a\x00b", "\ud800", "a" * 300, "../" * 40 + "etc/passwd",
    "/dev/zero", "/proc/self/mem", "{}", "%s", "|", "\u202efdp", "newest", "ä" * 200,
]  # fmt: skip
NUMBERS = [0, -1, 1 << 63, -(1 << 63) - 1, 10**400, 1e308, -0.0, float("nan"), float("inf"), 0.5, True, False, None]
GOOD_RECORD: dict[str, Any] = {
    "config": {"kind": "sft", "max_steps": 10, "save_every": 5, "policy_checkpoint": "x", "datasets": [{"name": "a.jsonl"}]},
    "status": "stopped", "started": "2026-01-01T00:00:00+00:00", "step": 5, "sealed": 5, "parent": "checkpoints/base",
    "result": "best", "metrics": {"eval_loss": 2.5}, "parameters": 1000, "trained_parameters": 10, "attention": "sdpa",
}  # fmt: skip


def value(rng: random.Random, depth: int = 2) -> Any:
    """Returns JSON data that somebody might put anywhere."""
    kind = rng.randrange(6 if depth else 2)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind < 4:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice([*TEXTS, "kind", "name", "step", "eval_loss"]): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def nested(depth: int, brackets: str = "[]") -> str:
    """Returns lists (or with "{}" objects) inside one another as JSON."""
    return ("[" if brackets == "[]" else '{"a":') * depth + "1" + brackets[1] * depth


def record(rng: random.Random) -> bytes:
    """Returns the bytes of a `run.json` that is nearly right."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice([b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe{}", b"\0" * 64, b"1" * 50_000,
                           nested(100_000).encode(), nested(900, "{}").encode(), b'{"config": ' + nested(60, "{}").encode() + b"}"])  # fmt: skip
    data = json.loads(json.dumps(GOOD_RECORD))
    for _ in range(rng.randint(1, 3)):
        target = data["config"] if kind == 1 and isinstance(data["config"], dict) else data
        target[rng.choice(list(target) or ["status"])] = value(rng)
    text = json.dumps(data).encode()
    return text[: rng.randrange(len(text))] if kind == 2 else text


def dataset_files() -> dict[str, tuple[bytes, str]]:
    """Returns files that readers abort or hang on: name -> content, and what is said of it."""
    names = ",".join(f"c{number}" for number in range(40_000))
    row = json.dumps({f"c{number}": 1 for number in range(40_000)})
    return {
        "null.jsonl": (b"null\n" * 50, "row 1 is null, not an object, as are all others"),
        "long.jsonl": (b'{"text": "a"}\n{"text": "' + b"a" * 60_000_000 + b'"}\n', "row 2 has more than 10,000,000 bytes"),
        "long.txt": (b"a" * 20_000_000, "row 1 has more than 10,000,000 bytes"),
        "bomb.jsonl.gz": (gzip.compress(b'{"text": "' + b"a" * 50_000_000 + b'"}\n', 1), "row 1 has more than 10,000,000 bytes"),
        "deep.json": (nested(100_000).encode(), "is nested too deep to be read"),
        "deep.jsonl": (b'{"text": ' + nested(100_000).encode() + b"}\n", "row 1 is nested too deep to be read"),
        "objects.jsonl": (nested(100_000, "{}").encode(), "row 1 is nested too deep to be read"),
        "wide.csv": (names.encode() + b"\n" + names.encode(), "has 40,000 columns, more than 2,000"),
        "wide.jsonl": (row.encode(), "has 40,000 columns, more than 2,000"),
    }  # fmt: skip


# options that no machine can honour: each is refused with one line that names the option
EXCESSIVE: dict[str, Any] = {
    "seed": 1 << 63, "batch_size": 10**18, "dataloader_workers": 10**6, "sample_tokens": 10**9, "max_steps": 10**30,
    "learning_rate": 10**400, "save_total_limit": 10**12, "gradient_accumulation_steps": 10**18,
}  # fmt: skip

DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = MADE %}{% endfor %}"
# chat templates that never end, or make more than any machine holds: in Python, and inside one call of C
HOSTILE_TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 3000000 }}", "{{ 10**10 * 'x' }}",
    "{{ [1] * 10**10 }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages[0] +", "{% for a in range(10**9) %}{% endfor %}",
    "{{ '{:>9999999999}'.format(1) }}", "{{ '{:{w}}'.format(1, w=10**10) }}", "{{ '{:>9999999999}'.format_map({'': 1}) }}",
    "{{ '{0:>9999999999}'.format_map([1]) }}", "{{ ('{0}' * 9999).format('x' * 90000) }}", "{{ 'a'|center(10**10) }}",
    "{{ 'a'.center(10**10) }}", "{{ 'a'.ljust(width=10**10) }}", "{{ 'a'.ljust(10**10) }}", "{{ 'a'.rjust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}", "{{ ('\\t' * 9999).expandtabs(10**7) }}", "{{ ('a' * 90000).replace('a', 'b' * 90000) }}",
    "{{ ('a' * 90000)|replace('a', 'b' * 90000) }}", "{{ ('a' * 90000)|replace('', 'b' * 90000) }}",
    "{{ ('a' * 90000).translate({97: 'b' * 90000}) }}", "{{ (['x' * 90000] * 90000)|join }}", "{{ [['x' * 90000]] * 9000 }}",
    "{{ ('x' * 90000)|join('y' * 90000) }}", "{{ ('y' * 90000).join('x' * 90000) }}", "{{ (range(90000)|list)|join('x' * 90000) }}",
    "{{ range(90000)|map('string')|map('center', 90000)|join }}", "{{ ('\\n' * 90000)|indent(90000, true, true) }}",
    "{{ ('a ' * 40000)|wordwrap(1, true, 'x' * 90000) }}", "{{ ('http://a.b ' * 9000)|urlize(rel='x' * 90000) }}",
    "{{ [1]|batch(10**10, 0)|list }}", "{{ [1]|slice(10**10)|list }}", "{{ [1, [2]]|tojson(indent=10**10) }}",
    "{{ (range(90000)|list)|tojson(separators=('x' * 90000, 'y')) }}", "{{ '%9999999999d' % 1 }}", "{{ '%*d' % (10**10, 1) }}",
    "{{ ('%(a)s' * 9000) % {'a': 'x' * 90000} }}", "{{ '%9999999999d'|format(1) }}", "{{ 'a'.encode().center(10**10) }}",
    "{{ (1).to_bytes(10**10, 'big') }}", "{{ 9 ** (9 ** 9) }}", "{{ (range(50000)|map('list')|list) }}",
    DOUBLED.replace("START", "'a'").replace("MADE", "ns.x ~ ns.x") + "{{ ns.x }}",
    DOUBLED.replace("START", "'a'").replace("MADE", "ns.x + ns.x") + "{{ ns.x }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "[ns.x, ns.x]") + "{{ ns.x }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "(ns.x, ns.x)") + "{{ ns.x == ns.x|list }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x|tojson }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    DOUBLED.replace("START", "9").replace("MADE", "ns.x * ns.x") + "{{ ns.x }}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLED.replace("START", "'a'").replace("MADE", "m(ns.x)") + "{{ ns.x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% for a in range(90000) %}{{ 'x' * 90000 }}{% endfor %}",
    "{{ range(90000)|map('string')|map('center', 90000)|list }}",
    "{{ range(90000)|map('string')|map('center', 90000)|sort }}", "{{ dict(range(90000)|map('string')|map('center', 90000)) }}",
    "{{ lipsum(n=10**9) }}", "{{ (range(90000)|map('list')|list)|sum(start=[]) }}", "{{ " + "(" * 50_000,
    "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}", "{{ " + "[" * 900 + "]" * 900 + " }}", "{% if 1 %}" * 5_000,
    "{% if 1 %}" * 300 + "{% endif %}" * 300, "{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "{{ 1" + " + 1" * 90_000 + " }}",
    "{{ x" + ".a" * 90_000 + " }}", "a" * 400_000, "{{ 1 // 0 }}", "{% include 'x' %}", "{% extends 'x' %}", "{{ messages.append(1) }}",
    "{{ raise_exception('[/]\\x1b[2J') }}", "{{ none.x.y }}", "{{ namespace(__class__=1) }}", "{{ cycler.__init__.__globals__ }}",
]  # fmt: skip

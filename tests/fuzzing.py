"""Generators of bad input, shared by the tests (a fixed count) and `benchmarks/fuzz.py` (a large one).

Each returns bytes of a file, or a name, from a random number generator: the same seed gives the same input.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXTS = [
    "",
    " ",
    "-",
    ".",
    "..",
    "[/]",
    "[bold]x",
    "\x1b[2Jx",
    "\x00",
    "a\x00b",
    "\ud800",
    "a" * 300,
    "../" * 40 + "etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "{}",
    "%s",
    "|",
    "\u202efdp",
    "newest",
    "ä" * 200,
]
NUMBERS = [
    0,
    -1,
    1 << 63,
    -(1 << 63) - 1,
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    0.5,
    True,
    False,
    None,
]
GOOD_RECORD: dict[str, Any] = {
    "config": {
        "kind": "sft",
        "max_steps": 10,
        "save_every": 5,
        "policy_checkpoint": "x",
        "datasets": [{"name": "a.jsonl"}],
    },
    "status": "stopped",
    "started": "2026-01-01T00:00:00+00:00",
    "step": 5,
    "sealed": 5,
    "parent": "checkpoints/base",
    "result": "best",
    "metrics": {"eval_loss": 2.5},
    "parameters": 1000,
    "trained_parameters": 10,
    "attention": "sdpa",
}


def value(rng: random.Random, depth: int = 2) -> Any:
    """Returns JSON data that somebody might put anywhere."""
    kind = rng.randrange(6 if depth else 2)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind < 4:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {
        rng.choice([*TEXTS, "kind", "name", "step", "eval_loss"]): value(rng, depth - 1)
        for _ in range(rng.randrange(4))
    }


def nested(depth: int, brackets: str = "[]") -> str:
    """Returns lists (or with "{}" objects) inside one another as JSON."""
    return ("[" if brackets == "[]" else '{"a":') * depth + "1" + brackets[1] * depth


def record(rng: random.Random) -> bytes:
    """Returns the bytes of a `run.json` that is nearly right."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(
            [
                b"",
                b"{",
                b"null",
                b"[]",
                b"7",
                b'"x"',
                b"\xff\xfe{}",
                b"\0" * 64,
                b"1" * 50_000,
                nested(100_000).encode(),
                nested(900, "{}").encode(),
                b'{"config": ' + nested(60, "{}").encode() + b"}",
            ]
        )
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
        "one-null.jsonl": (b'null\n{"text": "a"}\n', "row 1 is null, not an object"),
        "some-null.jsonl": (b'{"text": "a"}\n\nnull\n', "row 3 is null, not an object"),
        "long.jsonl": (
            b'{"text": "a"}\n{"text": "' + b"a" * 60_000_000 + b'"}\n',
            "row 2 has more than 10,000,000 bytes",
        ),
        "long.txt": (b"a" * 20_000_000, "row 1 has more than 10,000,000 bytes"),
        "bomb.jsonl.gz": (
            gzip.compress(b'{"text": "' + b"a" * 50_000_000 + b'"}\n', 1),
            "row 1 has more than 10,000,000 bytes",
        ),
        "deep.json": (nested(100_000).encode(), "is nested too deeply to be read"),
        "deep.jsonl": (
            b'{"text": ' + nested(100_000).encode() + b"}\n",
            "row 1 is nested too deeply to be read",
        ),
        "objects.jsonl": (nested(100_000, "{}").encode(), "row 1 is nested too deeply to be read"),
        "wide.csv": (names.encode() + b"\n" + names.encode(), "has 40,000 columns, more than 2,000"),
        "wide.jsonl": (row.encode(), "has 40,000 columns, more than 2,000"),
    }


# options that no machine can honour: each is refused with one line that names the option
EXCESSIVE: dict[str, Any] = {
    "seed": 1 << 63,
    "batch_size": 10**18,
    "dataloader_workers": 10**6,
    "sample_tokens": 10**9,
    "max_steps": 10**30,
    "learning_rate": 10**400,
    "save_total_limit": 10**12,
    "gradient_accumulation_steps": 10**18,
}

DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = MADE %}{% endfor %}"
# chat templates that never end, or make more than any machine holds: in Python, and inside one call of C
HOSTILE_TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 3000000 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [1] * 10**10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages[0] +",
    "{% for a in range(10**9) %}{% endfor %}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**10) }}",
    "{{ '{:>9999999999}'.format_map({'': 1}) }}",
    "{{ '{0:>9999999999}'.format_map([1]) }}",
    "{{ ('{0}' * 9999).format('x' * 90000) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'.center(10**10) }}",
    "{{ 'a'.ljust(width=10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.rjust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ ('\\t' * 9999).expandtabs(10**7) }}",
    "{{ ('a' * 90000).replace('a', 'b' * 90000) }}",
    "{{ ('a' * 90000)|replace('a', 'b' * 90000) }}",
    "{{ ('a' * 90000)|replace('', 'b' * 90000) }}",
    "{{ ('a' * 90000).translate({97: 'b' * 90000}) }}",
    "{{ (['x' * 90000] * 90000)|join }}",
    "{{ [['x' * 90000]] * 9000 }}",
    "{{ ('x' * 90000)|join('y' * 90000) }}",
    "{{ ('y' * 90000).join('x' * 90000) }}",
    "{{ (range(90000)|list)|join('x' * 90000) }}",
    "{{ range(90000)|map('string')|map('center', 90000)|join }}",
    "{{ ('\\n' * 90000)|indent(90000, true, true) }}",
    "{{ ('a ' * 40000)|wordwrap(1, true, 'x' * 90000) }}",
    "{{ ('http://a.b ' * 9000)|urlize(rel='x' * 90000) }}",
    "{{ [1]|batch(10**10, 0)|list }}",
    "{{ [1]|slice(10**10)|list }}",
    "{{ [1, [2]]|tojson(indent=10**10) }}",
    "{{ (range(90000)|list)|tojson(separators=('x' * 90000, 'y')) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ ('%(a)s' * 9000) % {'a': 'x' * 90000} }}",
    "{{ '%9999999999d'|format(1) }}",
    "{{ 'a'.encode().center(10**10) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ (range(50000)|map('list')|list) }}",
    DOUBLED.replace("START", "'a'").replace("MADE", "ns.x ~ ns.x") + "{{ ns.x }}",
    DOUBLED.replace("START", "'a'").replace("MADE", "ns.x + ns.x") + "{{ ns.x }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "[ns.x, ns.x]") + "{{ ns.x }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "(ns.x, ns.x)") + "{{ ns.x == ns.x|list }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x|tojson }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    DOUBLED.replace("START", "[1]").replace("MADE", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    DOUBLED.replace("START", "9").replace("MADE", "ns.x * ns.x") + "{{ ns.x }}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}"
    + DOUBLED.replace("START", "'a'").replace("MADE", "m(ns.x)")
    + "{{ ns.x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for a in range(90000) %}{{ 'x' * 90000 }}{% endfor %}",
    "{{ range(90000)|map('string')|map('center', 90000)|list }}",
    "{{ range(90000)|map('string')|map('center', 90000)|sort }}",
    "{{ dict(range(90000)|map('string')|map('center', 90000)) }}",
    "{{ lipsum(n=10**9) }}",
    "{{ (range(90000)|map('list')|list)|sum(start=[]) }}",
    "{{ " + "(" * 50_000,
    "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "{{ " + "[" * 900 + "]" * 900 + " }}",
    "{% if 1 %}" * 5_000,
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{ 1" + " + 1" * 90_000 + " }}",
    "{{ x" + ".a" * 90_000 + " }}",
    "a" * 400_000,
    "{{ 1 // 0 }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{{ messages.append(1) }}",
    "{{ raise_exception('[/]\\x1b[2J') }}",
    "{{ none.x.y }}",
    "{{ namespace(__class__=1) }}",
    "{{ cycler.__init__.__globals__ }}",
]


@dataclass
class Case:
    """One thing that somebody does: files in an empty folder, a command, and what is typed.

    Attributes:
        kind: of input, for the count.
        argv: of the program.
        copies: folders that are copied into the empty one, by the name they get there.
        files: bytes by path; None removes what was copied.
        sealed: checkpoints among the copies whose manifests are made to fit again.
        stdin: what comes by the pipe.
    """

    kind: str
    argv: list[str]
    copies: dict[str, Path] = field(default_factory=dict)
    files: dict[str, bytes | None] = field(default_factory=dict)
    sealed: list[str] = field(default_factory=list)
    stdin: bytes = b""

    def __str__(self) -> str:
        files = {path: content if content is None else content[:200] for path, content in self.files.items()}
        return f"{self.kind} {str(self.argv)[:400]} {files} {self.stdin[:60]!r}"


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


COMMANDS = [
    "info {}",
    "chat {}",
    "run {}",
    "check {}",
    "runs verify {}",
    "data catalog {}",
    "data inspect {}",
    "data clean {} -o new.jsonl",
    "data overlap {} {}",
    "tokenizer {} -o new",
    "merge {}",
    "cache list --cache-dir {}",
    "cache verify --cache-dir {}",
    "runs {}",
    "{}",
    "evaluate {} --task x.jsonl",
    "generate {} -p x",
    "new {}",
    "new sft --set name={} -o c.json",
    "new sft --set policy_checkpoint={}",
    "new sft --set {}",
    "new sft -o {}",
    "schema {}",
    "methods {}",
    "run c.json --resume {}",
    "run c.json --trust {}",
    "chat {} --against {}",
    "doctor {}",
    "data {}",
    "check c.json --set output_dir={}",
    "check c.json --set datasets={}",
    "check c.json --set {}=1",
    "tokenizer rows.txt -o {}",
    "info --{}",
    "run c.json --set device={}",
]
ESCAPES = [
    "\x1b]0;owned\x1b\\\x1b[2J",
    "\x9bc",
    "\x07",
    "\x7f",
    "\x08" * 9,
    "\x1b[31m",
    "\u202e",
    "\r",
    "\x1bP+q\x1b\\",
]


def name(rng: random.Random) -> str:
    """Returns a name that somebody might type, as arguments of a process can be: without NUL."""
    made = rng.choice(
        [
            *TEXTS,
            *ESCAPES,
            "\udc80x",
            "a/" * 3000,
            "~",
            "~nobody",
            "~/x",
            "*",
            "$HOME",
            "`x`",
            "a\nb",
            "\t",
            "checkpoints/x",
            "a/b/c",
            "-1",
            "1e400",
            "rows.txt",
            "c.json",
            "/",
            "/proc",
            "/dev",
            "/dev/stdin",
            "/dev/null",
            "/proc/self/fd/0",
            "/etc/shadow",
            "x.gguf",
            "x.bin",
            "a" * 100_000,
            "hf://x",
            "http://[",
            "a@b",
            "a:b",
            "llmlab:",
            "llmlab:moby-dick",
            "llmlab:x",
            "sft",
            "x=y",
            "=",
            "==",
            "x=",
            "a.b=c",
            "[a",
            "{",
            "{}{}",
            "%(a)s",
        ]
    )
    if rng.random() < 0.2:
        made += rng.choice([*ESCAPES, *TEXTS])
    return made.replace("\0", "\ufffd")


def text(rng: random.Random) -> Any:
    """Returns what might stand in a row where a text is expected."""
    return rng.choice(
        [
            "Who is Ahab?",
            "The captain.",
            *TEXTS,
            *ESCAPES,
            value(rng),
            "a" * 5000,
            "<|im_end|>",
            "💥" * 50,
            "\ud800x",
        ]
    )


def config(rng: random.Random, kinds: dict[str, Any]) -> bytes:
    """Returns the bytes of a config that is nearly right.

    Args:
        rng: of the choices.
        kinds: classes by name.
    """
    kind = rng.choice([*kinds, "", "nothing", None])
    cls = kinds.get(kind)
    data: dict[str, Any] = {"kind": kind}
    names = list(cls.model_fields) if cls else ["a", "b"]
    for option in rng.sample(names, rng.randint(0, min(6, len(names)))):
        default = cls.model_fields[option].get_default(call_default_factory=True) if cls else 1
        plain = isinstance(default, (int, float, str, bool)) and rng.random() < 0.3
        data[option] = (
            default
            if plain
            else rng.choice([value(rng), rng.choice(TEXTS), [{"name": rng.choice(TEXTS)}], "x" * 5000])
        )
    if rng.random() < 0.2:
        data[rng.choice(["learning_rat", "list[", "", "schema_version", "{}", "a" * 300, *ESCAPES])] = value(
            rng
        )
    whole = json.dumps(data, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return rng.choices(
        [
            whole,
            rng.randbytes(rng.randint(0, 300)),
            nested(rng.choice([100, 2000, 100_000]), "{}").encode(),
            whole[: rng.randint(0, len(whole))],
            json.dumps(rng.choice([[], 1, "x", None, [data]])).encode(),
            b"\xef\xbb\xbf" + whole,
            whole.decode("utf-8", "replace").encode("utf-16", "replace"),
        ],
        [12, 1, 1, 1, 1, 1, 1],
    )[0]


ROWS = [
    {"text": "Call me Ishmael."},
    {"prompt": "Who?", "completion": "Ahab"},
    {"prompt": "Who?", "chosen": "Ahab", "rejected": "Stubb"},
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ahab"}]},
    {"question": "Who?", "answer": "Ahab"},
    {"text": "x", "label": 1},
    {"instruction": "Say", "input": "", "output": "x"},
    {"prompt": "Who?", "completion": "x", "label": True},
]


def rows(rng: random.Random) -> tuple[str, bytes]:
    """Returns name and bytes of a dataset that is nearly right."""
    row = rng.choice(ROWS)
    made = [json.loads(json.dumps(row)) for _ in range(rng.randrange(1, 6))]
    for one in rng.sample(made, rng.randint(0, len(made))):
        if "messages" in one and rng.random() < 0.7:
            turn = rng.choice(one["messages"])
            turn[rng.choice(["role", "content", "tool_calls", "name", "x"])] = text(rng)
        else:
            one[rng.choice([*one, *TEXTS[:9]])] = text(rng)
    lines = [json.dumps(rng.choice([one] * 12 + [None, [], 7, "x", {}, [one]])) for one in made]
    joined = "\n".join(lines).encode()
    csv = "\n".join(
        ",".join(str(cell) for cell in one.values()) for one in [dict.fromkeys(row, "x"), *made]
    ).encode("utf-8", "replace")
    suffix, content = rng.choice(
        [
            ("jsonl", joined),
            ("json", f"[{','.join(lines)}]".encode()),
            ("txt", joined),
            ("csv", csv),
            ("jsonl.gz", gzip.compress(joined)),
            ("parquet", joined),
            ("arrow", b"ARROW1" + joined),
            ("txt.zst", joined),
            ("md", rng.randbytes(200)),
            ("txt", "\n".join(ESCAPES * 9).encode()),
            ("jsonl", b'{"text": ' + nested(100_000).encode() + b"}"),
            ("jsonl", b'{"text": "' + b"a" * 300_000 + b'"}'),
        ]
    )
    return f"rows.{suffix}", content if rng.random() < 0.7 else damaged(content, joined, rng, "ran")


def damaged(content: bytes, other: bytes, rng: random.Random, marker: str) -> bytes:
    """Returns the content of a file as it may arrive: cut, changed, another's, hostile.

    Args:
        content: of the whole file.
        other: of another file.
        rng: of the choices.
        marker: of the file that is made when a pickle is run.
    """
    kind = rng.randrange(8)
    if kind == 0:
        return content[: rng.randint(0, len(content))]
    if kind == 1:
        made = bytearray(content)
        for _ in range(rng.randint(1, 20) if made else 0):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        return bytes(made)
    if kind == 2:
        return other
    if kind == 3:
        return pickle.dumps(Hostile(marker))
    if kind == 4:  # a header that promises more than there is, as safetensors have them
        return rng.choice(
            [b"\xff" * 8, (2**40).to_bytes(8, "little"), (8).to_bytes(8, "little")]
        ) + rng.randbytes(40)
    if kind == 5:
        start = rng.randint(0, len(content))
        return content[:start] + rng.randbytes(rng.randint(1, 200)) + content[start:]
    if kind == 6:
        return rng.choice(
            [
                b"",
                b"null",
                b"[]",
                b"{}",
                b"7",
                nested(100_000).encode(),
                nested(100_000, "{}").encode(),
                b"1" * 5000,
            ]
        )
    return in_json(content, rng)


def in_json(content: bytes, rng: random.Random) -> bytes:
    """Returns a JSON object with entries changed, or other bytes as they are."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return content
    for _ in range(rng.randint(1, 3)):
        target = data
        while isinstance(target, dict) and target:
            key = rng.choice(list(target))
            if isinstance(target[key], dict) and target[key] and rng.random() < 0.7:
                target = target[key]
                continue
            target[key] = rng.choice(
                [value(rng), value(rng), rng.choice(ESCAPES), "(a+)+$", rng.choice(HOSTILE_TEMPLATES[:40])]
            )
            break
    return json.dumps(data).encode("utf-8", "surrogatepass")


def torch_file(content: bytes, rng: random.Random, marker: str) -> bytes:
    """Returns a file of torch.save with other content in its pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(made, "w") as archive:
        for part in whole.namelist():
            held = whole.read(part)
            if part.endswith("data.pkl"):
                held = rng.choice(
                    [
                        pickle.dumps(Hostile(marker), 2),
                        damaged(held, b"N.", rng, marker),
                        pickle.dumps(value(rng), 2),
                    ]
                )
            archive.writestr(part, held)
    return made.getvalue()


def case(rng: random.Random, material: Path, kinds: dict[str, Any], wanted: tuple[str, ...] = ()) -> Case:
    """Returns something that somebody might do.

    Args:
        rng: of all choices.
        material: a folder with a `policy`, an `adapter`, a `run` that was stopped, a `cache` of its data.
        kinds: config classes by name.
        wanted: kinds of cases, out of which one is taken; left out, all.
    """
    makers = {
        "name": _of_names,
        "record": _of_records,
        "config": _of_configs,
        "rows": _of_rows,
        "said": _of_words,
        "model": _of_models,
        "checkpoint": _of_checkpoints,
        "cache": _of_caches,
    }
    chosen = wanted or tuple(makers)
    kind = rng.choices(chosen, [SHARES[name] for name in chosen])[0]
    return makers[kind](rng, material, kinds)


SHARES = {
    "name": 25,
    "record": 15,
    "config": 20,
    "rows": 15,
    "said": 5,
    "model": 12,
    "checkpoint": 5,
    "cache": 3,
}
GOOD_CONFIG = {
    "kind": "sft",
    "policy_checkpoint": "model",
    "datasets": ["rows.jsonl"],
    "max_steps": 4,
    "report_to": [],
    "warmup_steps": 0,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
    "eval_fraction": 0.0,
    "save_every": 2,
}
GOOD_ROWS = b'{"prompt": "Who is Ahab?", "completion": "The captain."}\n' * 4


def _of_names(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    argv = [part.replace("{}", name(rng)) for part in rng.choice(COMMANDS).split()]
    files: dict[str, bytes | None] = {
        "c.json": json.dumps(GOOD_CONFIG).encode(),
        "rows.jsonl": GOOD_ROWS,
        "rows.txt": b"Call me Ishmael.\n",
    }
    return Case("name", argv, files=files)


def _of_records(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    folder = rng.choice(["bad", "[/]y", "[draft]x", "\x1b[2Jz", "a|b", "é"])
    files: dict[str, bytes | None] = {
        f"checkpoints/{folder}/run.json": record(rng),
        "checkpoints/good/run.json": json.dumps(GOOD_RECORD).encode(),
        f"checkpoints/{folder}/best/config.json": in_json(
            b'{"model_type": "llama", "architectures": ["x"]}', rng
        ),
        f"checkpoints/{folder}/metrics.jsonl": damaged(
            b'{"step": 1, "loss": 2.0}\n{"step": 2, "eval_loss": 1.0}\n', b"null", rng, "ran"
        ),
    }
    command = rng.choice(
        ["runs", "info {}", "runs verify {}", "run {}", "check {}", "chat {}", "merge {}", "generate {} -p x"]
    )
    return Case(
        "record", [part.replace("{}", f"checkpoints/{folder}") for part in command.split()], files=files
    )


def _of_configs(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    files: dict[str, bytes | None] = {"c.json": config(rng, kinds), "rows.jsonl": GOOD_ROWS}
    return Case(
        "config",
        [
            rng.choice(["check", "check", "run"]),
            "c.json",
            *(["--set", f"x={name(rng)}"] if rng.random() < 0.1 else []),
        ],
        files=files,
    )


def _of_rows(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    file, content = rows(rng)
    argv = rng.choice(
        [
            ["data", "inspect", file],
            ["data", "inspect", "."],
            ["tokenizer", file, "-o", "new", "--vocab-size", "300"],
            ["check", "c.json"],
        ]
    )
    stated = {**GOOD_CONFIG, "datasets": [file], "policy_checkpoint": str(material / "policy")}
    return Case(
        "rows",
        argv,
        files={file: content, **({"c.json": json.dumps(stated).encode()} if "check" in argv else {})},
    )


def _of_words(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    said = rng.choice(
        [
            b"\xff\xfe",
            b"",
            b"\n\n",
            b"Who?\n" * 3,
            b"a" * 1_000_000,
            b"\x1b[2J",
            b"\0" * 99,
            b"/help\n",
            rng.randbytes(300),
        ]
    )
    if rng.random() < 0.5:
        return Case("said", ["chat", str(material / "policy"), "--set", "max_new_tokens=3"], stdin=said)
    return Case("said", ["generate", str(material / "policy"), "-p", name(rng), "--set", "max_new_tokens=3"])


def _of_models(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    source = rng.choice([material / "policy", material / "adapter"])
    file = rng.choice([path for path in sorted(source.iterdir()) if path.is_file()])
    other = rng.choice(sorted(path for path in source.iterdir() if path.is_file())).read_bytes()
    files: dict[str, bytes | None] = {f"model/{file.name}": damaged(file.read_bytes(), other, rng, "ran")}
    if rng.random() < 0.3 and file.suffix == ".json":
        files = {f"model/{file.name}": in_json(file.read_bytes(), rng)}
    elif rng.random() < 0.2:
        files = {"model/chat_template.jinja": rng.choice(HOSTILE_TEMPLATES).encode()}
    elif rng.random() < 0.2:
        files = {
            f"model/{bad}": pickle.dumps(Hostile("ran"))
            for bad in ("pytorch_model.bin", "adapter_model.bin", "model.pt")
        }
        files |= {f"model/{path.name}": None for path in source.glob("*.safetensors") if rng.random() < 0.5}
    argv = rng.choice(
        [
            ["generate", "model", "-p", "Who is Ahab?", "--set", "max_new_tokens=2"],
            ["info", "model"],
            ["check", "c.json"],
        ]
    )
    files |= {"c.json": json.dumps(GOOD_CONFIG).encode(), "rows.jsonl": GOOD_ROWS}
    return Case("model", argv, copies={"model": source}, files=files)


def _of_checkpoints(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    newest = max((material / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    file = rng.choice(sorted(newest.iterdir()))
    content = file.read_bytes()
    if file.suffix in (".pt", ".pth") and rng.random() < 0.6:
        made = torch_file(content, rng, "ran")
    else:
        made = (
            in_json(content, rng)
            if file.suffix == ".json" and rng.random() < 0.6
            else damaged(content, b"{}", rng, "ran")
        )
    where = f"run/{newest.name}"
    extra = {f"{where}/pytorch_model.bin": pickle.dumps(Hostile("ran"))} if rng.random() < 0.1 else {}
    sealed = [where] if rng.random() < 0.9 and file.name != "MANIFEST.json" else []
    return Case(
        "checkpoint",
        ["run", "run"],
        copies={"run": material / "run"},
        files={f"{where}/{file.name}": made, **extra},
        sealed=sealed,
    )


def _of_caches(rng: random.Random, material: Path, kinds: dict[str, Any]) -> Case:
    file = rng.choice(
        sorted(
            path
            for path in (material / "cache").rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
    )
    made = rng.choice([damaged(file.read_bytes(), b"{}", rng, "ran"), b""])
    return Case(
        "cache",
        ["run", str(material / "cached.json"), "--set", "output_dir=new", "--resume", "never"],
        copies={"cache": material / "cache"},
        files={f"cache/{file.relative_to(material / 'cache')}": made},
    )

"""Streams without UTF-8 and consoles without colour: everything is said all the same."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from llmlab.readable import ERRORS, PLAIN
from llmlab.ui.data import Learned
from tests.waiting import PATIENCE

ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def llmlab(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "llmlab", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout.decode("ascii"), done.stderr.decode("ascii")


@pytest.mark.slow
@pytest.mark.parametrize("environment", [ASCII, C_LOCALE], ids=["encoding", "locale"])
def test_a_pipe_of_plain_letters(environment, tmp_path):
    code, out, _ = llmlab("methods", **environment)
    assert code == 0 and "Proximal" in out
    config = tmp_path / "é·.json"
    config.write_text('{"kind": "model", "d_model": "·é"}')
    code, _, err = llmlab("check", str(config), **environment)
    assert code == 2 and "d_model" in err and "Traceback" not in err


def test_what_an_encoding_lacks_is_written_in_plain_letters():
    assert "a · b … » « ⠃é".encode("ascii", ERRORS) == b"a - b ... > < *?"
    assert all(len(sign) == 1 and value.isascii() for sign, value in PLAIN.items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"force_terminal": True, "color_system": "standard"}, "is green"),
        ({"force_terminal": True, "color_system": "standard", "no_color": True}, "user«19»"),
        ({}, "user«19»"),
    ],
    ids=["colours", "no colours", "a pipe"],
)
def test_what_is_learned_is_marked_with_and_without_colours(options, expected):
    out = io.StringIO()
    Console(file=out, width=80, **options).print(Learned("a row", [("user", False), ("19", True)]))
    text = out.getvalue()
    assert expected in text.replace("\x1b[2m", "").replace("\x1b[0m", "") and ("\x1b[32m" in text) == (
        expected == "is green"
    )

"""Completion as a shell asks for it: real shells read the script and press Tab."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab import __version__
from llmlab.cli.completion import SCRIPTS
from tests.conftest import llmlab
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow  # each Tab starts the program

# what is on the line -> words that are offered, words that are not
LINES = {
    "llmlab ru": (["run", "runs"], ["chat"]),
    "llmlab runs ": (["list", "compare", "verify"], []),
    "llmlab chat some --dev": (["--device"], ["--dtype"]),
    "llmlab chat some --device ": (["auto", "cuda", "mps", "cpu"], []),
    "llmlab chat some --set temp": (["temperature="], ["top_p="]),
    "llmlab new ": (["model", "sft", "dual_head"], []),
    "llmlab new model --preset t": (["tiny"], ["100m"]),
    "llmlab new sft --set learning_r": (["learning_rate="], ["max_steps="]),
    "llmlab new sft --set scheduler=": (["cosine", "linear"], ["true"]),
    "llmlab new sft --set packing=t": (["true"], ["false"]),
    "llmlab new sft --set policy_checkpoint=": (["newest", "first"], []),
    "llmlab run model_configs/a.yaml --set scheduler=l": (["linear"], ["cosine"]),
    "llmlab run m": (["model_configs/a.yaml"], ["model_configs/package.json"]),
    "llmlab runs again fi": (["first"], []),
    "llmlab runs again first --set vf_co": (["vf_coef="], []),
    "llmlab info checkpoints/deep/": (["checkpoints/deep/second"], []),
    "llmlab evaluate first --task llmlab:s": (["spam-mails"], ["moby-dick"]),
    "llmlab new sft -o own": (["own.txt"], []),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two runs, a config, a file that is none, and the program on the path."""
    folder = tmp_path_factory.mktemp("place")
    for name, kind in (("first", "ppo"), ("deep/second", "sft")):
        run = folder / "checkpoints" / name
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"config": {"kind": kind}}))
    (folder / "model_configs").mkdir()
    (folder / "model_configs" / "a.yaml").write_text("kind: sft\n")
    (folder / "model_configs" / "package.json").write_text('{"name": "x"}')
    (folder / "own.txt").write_text("")
    program = folder / "bin" / "llmlab"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m llmlab "$@"\n')
    program.chmod(0o755)
    for shell, script in SCRIPTS.items():
        (folder / f"completion.{shell}").write_text(script)
    return folder


def run_in(place, *command):
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "TERM": "dumb"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = str(root)
    result = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert not result.stderr.strip(), result.stderr
    return result.stdout


def bash_words(line):
    """As Bash breaks a line into COMP_WORDS: `=` and `:` are words of their own."""
    words = re.findall(r"[=:]|[^\s=:]+", line)
    return words if words[-1] in "=:" or not line.endswith(" ") else [*words, ""]


@pytest.mark.parametrize("line", LINES)
def test_bash(place, line):
    words = bash_words(line)
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"""source completion.bash
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}
        _llmlab_completion llmlab && printf '%s\\n' "${{COMPREPLY[@]}}"
        complete -p llmlab"""
    *offered, registered = run_in(place, "bash", "--norc", "-c", code).splitlines()
    assert "-o default" in registered  # where nothing is offered, Bash completes files
    if "-o own" not in line:
        check(offered, *LINES[line])


FEW = [
    "llmlab ru",
    "llmlab new sft --set learning_r",
    "llmlab new sft --set scheduler=",
    "llmlab new sft -o own",
]


@pytest.mark.parametrize("line", FEW)
def test_fish(place, line):
    shown = run_in(place, "fish", "--no-config", "-c", f"source completion.fish; complete -C '{line}'")
    offered = [re.split("[=:](?=.)", row.split("\t")[0])[-1] for row in shown.splitlines()]
    check(offered, *LINES[line])


@pytest.mark.parametrize("line", FEW[1::2])
def test_zsh(place, line):
    """In its own pseudo-terminal, which its completion needs."""
    code = f"""zmodload zsh/zpty
        zpty -b shell zsh -f
        zpty -w shell 'PROMPT=; autoload -U compinit; compinit -D -u; source completion.zsh; print re''ady'
        zpty -r shell seen '*ready*'
        zpty -w -n shell $'{line}\\t'
        zpty -r shell seen '*{LINES[line][0][0]}*'
        print -r -- $seen
        zpty -d shell"""
    assert LINES[line][0][0] in run_in(place, "zsh", "-f", "-c", code)


def check(offered, expected, others):
    assert set(expected) <= set(offered), offered
    assert not set(others) & set(offered), offered


def test_nothing_heavy_is_loaded_for_a_tab(place):
    code = "import sys, llmlab.cli.completing as c; c.kinds(); c.sources('x'); print('torch' in sys.modules)"
    assert run_in(place, sys.executable, "-c", code) == "False\n"


def test_version_and_an_unknown_shell(tmp_path):
    shown = llmlab("--version", cwd=tmp_path)
    assert shown.returncode == 0 and re.match(
        rf"llmlab {__version__} \(torch \d+\.\d+.*, transformers \d+\..*, trl \d+\..*\)\n$", shown.stdout
    )
    refused = llmlab("completion", "tcsh", cwd=tmp_path)
    assert refused.returncode == 2 and "use one of bash, zsh, fish" in refused.stderr

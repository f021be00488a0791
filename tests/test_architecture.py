"""The house: imports go down, never up or sideways; the doors open without torch."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent / "llmlab"
FLOORS = {"errors": 0, "deferred": 0, "files": 0, "trust": 0, "readable": 0, "screen": 0, "config": 0, "plan": 1, "model": 1, "data": 1, "runs": 1, "rewards": 1, "train": 2, "evaluate": 2, "chat": 2,
          "wizard": 3, "quickstart": 3, "cli": 3, "__main__": 4}  # fmt: skip
APART = {"train", "evaluate", "chat"}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "llmlab" and len(parts) > 1:
                yield parts[1]


def test_imports_go_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported_rooms(path):
            if FLOORS[other] > FLOORS[room] or (other != room and {other, room} <= APART):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def run_and_list_modules(code):
    program = f"import sys\n{code}\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.splitlines()[-1]


def test_config_layer_never_imports_torch():
    assert run_and_list_modules("import llmlab.config, llmlab.plan") == "False False"


def test_help_never_imports_torch():
    code = "from llmlab.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    assert run_and_list_modules(code) == "False False"


def test_menu_never_imports_torch(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r})\nimport llmlab.wizard.menu as m, llmlab.wizard.forms\nm.status()"
    assert run_and_list_modules(code) == "False False"


def test_the_three_doors_are_one_program():
    outputs = {
        subprocess.run(
            [sys.executable, *door, "--help"], capture_output=True, text=True, cwd=ROOT.parent, timeout=PATIENCE
        ).stdout.split("Options")[1]
        for door in (["-m", "llmlab"], ["llmlab_cli.py"])
    }
    assert len(outputs) == 1


if __name__ == "__main__":  # the start-up times, for the note: python tests/test_architecture.py
    import time

    times = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "llmlab", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    print(f"llmlab --help: median {statistics.median(times):.3f} s")

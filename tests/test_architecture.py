"""Imports go down, never up or sideways; the command line and the menu start without torch."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent / "llmlab"
LAYERS = {
    **dict.fromkeys(
        (
            "errors",
            "deferred",
            "hardware",
            "device_store",
            "titles",
            "files",
            "journal",
            "trust",
            "readable",
            "libraries",
            "env_file",
            "endpoint",
            "screen",
            "statistics",
            "config",
        ),
        0,
    ),
    **dict.fromkeys(("planning", "models", "data", "runs", "rewards", "launching"), 1),
    **dict.fromkeys(("training", "evaluation", "chat", "export", "serving", "selftest"), 2),
    **dict.fromkeys(("ui", "quickstart", "cli"), 3),
    "__main__": 4,
}
APART = {"training", "evaluation", "chat", "export"}  # they do not import each other


def imported_names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported_names(node):
            parts = name.split(".")
            if parts[0] == "llmlab" and len(parts) > 1:
                yield parts[1]


def test_imports_go_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        for other in imported_packages(path):
            if LAYERS[other] > LAYERS[package] or (other != package and {other, package} <= APART):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_training_knows_no_screen():
    """It speaks to a reporter: nothing in it prints, draws, or knows what does."""
    drawing = {"rich", "questionary", "prompt_toolkit", "plotext", "llmlab.screen", "llmlab.ui"}
    for path in (ROOT / "training").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {name for node in ast.walk(tree) for name in imported_names(node)}
        found = {name for name in imported for one in drawing if name == one or name.startswith(f"{one}.")}
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not found and "print" not in calls, f"{path.relative_to(ROOT)}: {found}"


def test_no_method_is_the_toolbox_of_another():
    """What methods share stands beside them, not in one of them."""
    methods = ROOT / "training" / "methods"
    for path in methods.glob("*.py"):
        imported = [
            node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        ]
        assert not [name for name in imported if name.startswith("llmlab.training.methods")], path.name


def run_and_list_modules(code):
    program = f"import sys\n{code}\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.splitlines()[-1]


def test_config_layer_never_imports_torch():
    assert run_and_list_modules("import llmlab.config, llmlab.planning") == "False False"


def test_help_never_imports_torch():
    code = "from llmlab.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    assert run_and_list_modules(code) == "False False"


def test_menu_never_imports_torch(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r})\nimport llmlab.ui.menu as m, llmlab.ui.forms\nm.status()"
    assert run_and_list_modules(code) == "False False"


def test_every_entry_point_is_the_same_program():
    outputs = {
        subprocess.run(
            [sys.executable, *entry, "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT.parent,
            timeout=PATIENCE,
        ).stdout.split("Options")[1]
        for entry in (["-m", "llmlab"], ["llmlab_cli.py"])
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

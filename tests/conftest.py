"""What all tests share: real text, a tokenizer learned from it, a tiny model that truly trained on it;
rows in a file, and the program as a process.
"""

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from llmlab.config import ModelConfig, PretrainConfig, SourceConfig
from llmlab.libraries import KNOWN_WARNINGS
from llmlab.models import LabConfig, LabForCausalLM
from llmlab.ui.reporters import LineReporter
from tests.waiting import PATIENCE


def pytest_configure(config):
    """What is known of the libraries' warnings is no error in tests either; garbage is looked for when
    everything is imported.
    """
    gc.disable()
    for start in KNOWN_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{re.escape(start)}:UserWarning")


LONG = ("end_to_end", "training", "test_cli.py", "export", "planning", "launching")


def pytest_collection_modifyitems(items):
    """Begins with the folders whose files take longest: of two workers, none goes on alone at the end."""
    root = Path(__file__).parent

    def place(item):
        part = item.path.relative_to(root).parts[0]
        return LONG.index(part) if part in LONG else len(LONG)

    items.sort(key=place)


def pytest_collection_finish():
    """From here on garbage is looked for."""
    gc.enable()


settings.register_profile("desk", deadline=None)  # tests assert no times
settings.load_profile("desk")
settings.register_profile(
    "ci", deadline=None, derandomize=True
)  # new cases are looked for at the desk, not in the gate
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    os.environ["LLMLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


class Told(LineReporter):
    """Keeps what a run says, as text."""

    def __init__(self):
        super().__init__(lambda line, warning: self.lines.append(str(line)))
        self.lines = []

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def told():
    return Told()


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_stays():
    """The garbage collector need not look through a million objects of the libraries again in each test.

    A run asks for two full collections; they took half of the time of short runs.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def fixed_seed_of_a_module():
    """What a module makes once does not depend on the tests that ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiler():
    """Skips where torch.compile fails: without a C++ compiler, and with the lowest instruction set."""
    try:
        torch.compile(lambda values: values.exp().sum(-1))(torch.ones(4, 33))
    except Exception as error:  # torch raises many kinds
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, own_cache):
    from llmlab.data.packed_text import document_texts
    from llmlab.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(document_texts(SourceConfig(name="llmlab:moby-dick", max_rows=20)), 512).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from llmlab.data.tokenizer import load_tokenizer

    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture(scope="session")
def shape(tokenizer_folder):
    return ModelConfig(
        tokenizer_name=str(tokenizer_folder),
        vocab_size=512,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=128,
        max_seq_len=64,
    )


@pytest.fixture(scope="session")
def base_config(shape):
    """A base training config of a few seconds; tests change what they need."""

    def make(folder, **changes):
        values = dict(
            model=shape,
            datasets=[SourceConfig(name="llmlab:moby-dick", max_rows=20)],
            eval_fraction=0.1,
            max_steps=30,
            learning_rate=3e-3,
            warmup_steps=3,
            batch_size=8,
            gradient_accumulation_steps=1,
            eval_every=10,
            eval_rows=32,
            save_every=10,
            log_every=5,
            output_dir=str(folder),
            report_to=[],
        )
        return PretrainConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def base_run(base_config, tmp_path_factory):
    from llmlab.training.engine.run import run

    return run(base_config(tmp_path_factory.mktemp("runs") / "base"))


def small_config(**changes):
    """A lab configuration of a toy model."""
    values = dict(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_seq_len=64)
    return LabConfig(**{**values, **changes})


def small_model(**changes):
    return LabForCausalLM(small_config(**changes)).eval()


POSITIONS = ["sinusoidal", "rope", "alibi", "yarn"]


def position_options(name):
    yarn = {"yarn_original_max_seq_len": 16, "yarn_factor": 4.0} if name == "yarn" else {}
    return {"positional_encoding": name, **yarn}


def with_positions(name, **changes):
    return small_model(**position_options(name), **changes)


def write_rows(path, rows):
    """Writes rows as lines of JSON; returns the file's name, as a config names it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def llmlab(*arguments, cwd, stdin=""):
    """Runs the program as a person does: a process, with what it printed and its exit code."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "llmlab", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        input=stdin,
        env=environment,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="session")
def untrained(tokenizer_folder, tmp_path_factory):
    """Makes the folder of a model with a chat template; changes are those of its configuration. What it says
    is arbitrary, and the same every time.
    """
    from llmlab.data.tokenizer import load_tokenizer

    def make(name="model", **changes):
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp("untrained") / name
        tokenizer = load_tokenizer(str(tokenizer_folder))
        values = {**dict(vocab_size=512, max_seq_len=96, tie_embeddings=False), **changes}
        model = small_model(
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **values
        )
        for weights in model.parameters():
            if weights.dim() == 2:
                torch.nn.init.normal_(weights, std=0.2)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def chat_folder(untrained):
    return untrained()

"""A hub on the loopback for the process of the tests, and models to publish."""

import time
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, logging
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM

from llmlab import trust
from tests.export.hub_server import local_hub

WRITER = "hf_writer_of_the_test_account"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local hub that huggingface_hub asks in this process; it does not wait between its tries."""
    with local_hub(part_size=40_000) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(
            "huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time)
        )
        for name, value in {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_TOKEN": WRITER}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(trust, "NAMED", {})
        monkeypatch.chdir(tmp_path)
        disable_progress_bars()  # as the program does where there is no terminal
        logging.set_verbosity_error()
        yield hub
        enable_progress_bars()
        logging.set_verbosity_warning()


@pytest.fixture(scope="session")
def native_folder(tmp_path_factory, tokenizer):
    """A model of a family that transformers knows, in several files."""
    folder = tmp_path_factory.mktemp("native") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="150KB")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def native(native_folder, tmp_path):
    """A copy of it that a test may change."""
    import shutil

    return shutil.copytree(native_folder, tmp_path / "tiny-llama")

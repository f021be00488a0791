"""Models that are not trained: what they say is arbitrary, and the same every time."""

import pytest
import torch

from tests.conftest import small_model


@pytest.fixture(scope="session")
def untrained(tokenizer_folder, tmp_path_factory):
    """Makes the folder of a model with a chat template; changes are those of its configuration."""
    from llmlab.data.tokenizer import load_tokenizer

    def make(name="model", **changes):
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp("untrained") / name
        tokenizer = load_tokenizer(str(tokenizer_folder))
        values = dict(vocab_size=512, max_seq_len=96, tie_embeddings=False, **changes)
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

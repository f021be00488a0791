"""Rows that a model cannot compute: what comes of them is infinite, as of a broken sum in half precision."""

from contextlib import contextmanager
from unittest.mock import patch

import torch

from llmlab.data.tokenizer import load_tokenizer
from llmlab.models import LabModel


@contextmanager
def broken(word, policy):
    """Makes what is computed of rows with a word infinite; nothing where the word is empty."""
    if not word:
        yield
        return
    tokenizer, inner = load_tokenizer(policy), LabModel.forward

    def forward(self, input_ids=None, *args, **kwargs):
        out = inner(self, input_ids, *args, **kwargs)
        bad = torch.tensor([word in tokenizer.decode(row) for row in input_ids])
        if bad.any():
            out.last_hidden_state = out.last_hidden_state * torch.where(bad, float("inf"), 1.0)[:, None, None]
        return out

    with patch.object(LabModel, "forward", forward):
        yield

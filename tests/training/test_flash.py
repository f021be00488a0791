"""Packed rows under flash attention, its kernel replaced by the same sums in plain torch:
documents do not see each other.
"""

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, modeling_flash_attention_utils

from llmlab.data.packing import PackedCollator, document_bounds, takes_bounds
from llmlab.training.optimizers import gauss_newton_diagonal
from llmlab.training.padding_free import make_padding_free, packing_leaks
from llmlab.training.reference.scorer import Scoring, reference_values
from tests.conftest import small_model


def causal(query, key, value, scale):
    """Attention of one document: (T, H, D) each, fewer heads of keys and values are shared."""
    share = query.shape[1] // key.shape[1]
    query, key, value = (
        part.transpose(0, 1)[None]
        for part in (query, key.repeat_interleave(share, 1), value.repeat_interleave(share, 1))
    )
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)[
        0
    ].transpose(0, 1)


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale=None, max_seqlen_q=None, **kwargs):
    parts = list(itertools.pairwise(cu_seqlens_q.tolist()))
    assert cu_seqlens_q.tolist() == cu_seqlens_k.tolist() and max_seqlen_q == max(
        end - start for start, end in parts
    )
    return torch.cat(
        [causal(q[start:end], k[start:end], v[start:end], softmax_scale) for start, end in parts]
    )


def fixed(q, k, v, softmax_scale=None, **kwargs):
    return torch.stack([causal(*row, softmax_scale) for row in zip(q, k, v, strict=True)])


@pytest.fixture(params=["lab", "llama"])
def models(request, monkeypatch):
    """The same weights with the kernel of plain torch,
    and with the stand-in behind transformers' own way to flash attention.
    """

    def kwargs(**given):
        return {
            name: given[name] for name in ("softmax_scale", "max_seqlen_q", "max_seqlen_k") if name in given
        }

    def process(query_length=None, key_length=None, **given):
        return kwargs(**given)

    found = (
        (
            fixed,
            varlen,
            None,
            modeling_flash_attention_utils._pad_input,
            modeling_flash_attention_utils._unpad_input,
        ),
        (process, process),
    )
    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *args, **kwargs: found
    )
    made = []
    for kernel in ("sdpa", "flash_attention_2"):
        torch.manual_seed(0)
        if request.param == "lab":
            model = small_model()
        else:
            shape = dict(
                vocab_size=97,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
            model = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=64)).eval()
        model.config._attn_implementation = kernel
        made.append(model)
    return made


ROWS = [
    {"input_ids": list(range(1, 18)), "seq_lengths": [5, 1, 11]},
    {"input_ids": list(range(30, 50)), "seq_lengths": [12, 8]},
    {"input_ids": [3, 1, 4]},
]


@torch.no_grad()
def test_packed_rows_of_any_number_are_those_of_the_plain_kernel(models):
    plain, flash = models
    assert takes_bounds(flash) and not takes_bounds(plain)
    for rows in (ROWS[:1], ROWS):
        batch = PackedCollator(0, bounds=True)(rows)
        bare = {name: batch[name] for name in ("input_ids", "position_ids")}
        labels = batch.pop("labels")
        wanted = plain(**bare, use_cache=False).logits
        torch.testing.assert_close(flash(**batch, use_cache=False).logits, wanted, atol=1e-5, rtol=1e-5)
        assert labels.shape == wanted.shape[:2]
    leaked = (
        (flash(**bare, use_cache=False).logits - wanted).abs().max()
    )  # what transformers makes of positions alone
    assert leaked > 1e-2


def test_sophias_curvature_does_not_reach_across_documents(models):
    batch = PackedCollator(0, bounds=True)(ROWS * 2)  # half of the rows are used: three
    estimates = []
    for model in models:
        torch.manual_seed(3)
        estimates.append(gauss_newton_diagonal(model, torch.optim.SGD(model.parameters(), lr=1), batch))
    for plain, flash in zip(*estimates, strict=True):
        torch.testing.assert_close(flash, plain, atol=1e-8, rtol=1e-3)


def test_leaks_are_tried_in_two_rows(models, monkeypatch):
    assert not packing_leaks(models[0]) and not packing_leaks(models[1])
    monkeypatch.setattr("llmlab.training.padding_free.takes_bounds", lambda model: False)
    assert packing_leaks(models[1])


def test_answers_in_one_row_have_the_values_of_the_plain_kernel(models):
    items = [
        (list(range(1, 9)), [11, 12, 13], [14, 15]),
        (list(range(20, 24)), [31], [32, 33]),
        ([7, 8], [41, 42], [43]),
    ]
    wanted, found = (reference_values(model, items, Scoring("cpu", "fp32", 0)) for model in models)
    for one, other in zip(wanted, found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_padding_free_batches_have_the_values_of_the_plain_kernel(models):
    from trl.trainer.utils import add_fused_lm_head

    ids = torch.randint(1, 97, (6, 20))
    mask = torch.ones_like(ids)
    for row, size in enumerate((20, 4, 9, 6, 11, 3)):
        mask[row, size:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    made = []
    for model in models:
        add_fused_lm_head(model)
        make_padding_free(model)
        made.append(
            model(
                input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, use_cache=False
            ).log_probs
        )
    torch.testing.assert_close(made[0], made[1], atol=1e-4, rtol=1e-4)


def test_bounds_are_those_of_the_documents():
    bounds = document_bounds(torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 2, 3]]))
    assert bounds["cu_seq_lens_q"].tolist() == [0, 2, 5, 6, 10] and bounds["max_length_k"] == 4


@pytest.mark.slow
def test_a_run_hands_the_bounds_to_the_kernel(base_config, tmp_path, monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from llmlab.training.engine.run import run

    seen, kernel = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watched(*args, **kwargs):
        seen.append(kwargs.get("cu_seq_lens_q"))
        return kernel(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", watched)
    monkeypatch.setattr("llmlab.training.methods.pretrain.takes_bounds", lambda model: True)
    run(base_config(tmp_path / "run", max_steps=2, warmup_steps=0, eval_every=2, sample_tokens=0))
    assert (
        sum(bounds is not None for bounds in seen) >= 8
    )  # two steps and two validations of a model of two layers

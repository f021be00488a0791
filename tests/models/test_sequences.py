"""What a token may see: packed documents, windows, caches, lengths beyond training;
for every positional encoding.
"""

import pytest
import torch

from tests.conftest import POSITIONS, with_positions


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_packed_documents_never_see_each_other(name, window, kernel):
    model = with_positions(name, sliding_window=window)
    model.set_attn_implementation(kernel)
    sizes = [5, 1, 9, 7]
    documents = [torch.randint(0, 97, (1, size)) for size in sizes]
    packed = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    for use_cache in (False, True):
        together = model(packed, position_ids=positions, use_cache=use_cache).logits
        alone = torch.cat([model(document).logits for document in documents], dim=1)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", POSITIONS)
def test_packed_gradients_are_those_of_single_documents(name):
    model = with_positions(name).train()
    sizes, ids = [6, 10], torch.randint(0, 97, (1, 16))
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    labels = ids.clone()
    labels[positions == 0] = -100
    model(ids, position_ids=positions, labels=labels, num_items_in_batch=14).loss.backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for document in ids.split(sizes, dim=1):
        model(document, labels=document, num_items_in_batch=14).loss.backward()
    for own, single in zip(packed, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(own, single, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_cached_and_uncached_decoding_agree_beyond_the_trained_length(name, window):
    model = with_positions(name, sliding_window=window, max_seq_len=16)
    ids = torch.randint(0, 97, (2, 40))
    whole = model(ids).logits
    out = model(ids[:, :10], use_cache=True)
    pieces, cache = [out.logits], out.past_key_values
    for start, end in [
        (10, 11),
        (11, 12),
        (12, 20),
        *((i, i + 1) for i in range(20, 40)),
    ]:  # also several at once
        pieces.append(model(ids[:, start:end], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", POSITIONS)
def test_generate_with_and_without_cache(name):
    model = with_positions(name, max_seq_len=16)
    ids = torch.randint(0, 97, (2, 6))
    settings = dict(
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        attention_mask=torch.ones_like(ids),
    )
    assert torch.equal(
        model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings)
    )


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_left_padding_changes_nothing(name):
    model = with_positions(name)
    ids = torch.randint(1, 97, (1, 8))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 8])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    own = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(own, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_nothing_looks_ahead_or_out_of_its_window(name):
    model = with_positions(name, sliding_window=4, n_layers=1)
    ids = torch.randint(0, 97, (1, 12))
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 97
    moved = (model(ids).logits - model(changed).logits).abs().amax(dim=2)[0] > 1e-7
    assert moved.nonzero().flatten().tolist() == [5, 6, 7, 8]


@torch.no_grad()
def test_static_cache():
    model = with_positions("alibi")
    ids = torch.randint(0, 97, (1, 6))
    settings = dict(
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        attention_mask=torch.ones_like(ids),
    )
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **settings)
    assert torch.equal(static, model.generate(ids, **settings))


def test_the_mask_of_packed_rows_is_kept_once_for_all_layers():
    model = with_positions("rope", n_layers=3).train()
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None]
    kept = {}

    def note(tensor):
        if tensor.shape[-2:] == (24, 24) and tensor.shape[1] == 1:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no place is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.randint(0, 97, (1, 24)), position_ids=positions, use_cache=False)
    assert len(kept) == 1

"""Mixtures and streams: exact shares, an order that follows from seed and position,
places that can be gone back to.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from llmlab.config import PretrainConfig, SFTConfig, SourceConfig
from llmlab.config.base import validate
from llmlab.config.sources import mixture_name, short_names
from llmlab.data.conversations import sft_data
from llmlab.data.mixture import is_held_out, mixture, sources_at
from llmlab.data.packed_text import pretrain_data
from llmlab.data.packing import (
    POSITION,
    PackedCollator,
    documents_table,
    pack,
    padding_share,
    row_lengths,
    table_rows,
)
from llmlab.data.stream_position import LanePositions
from llmlab.errors import LabError
from tests.conftest import write_rows

weights = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(weights, st.integers(0, 1000))
def test_shares_of_100_000_draws_are_the_weights(values, seed):
    shares = [value / sum(values) for value in values]
    counts = np.bincount(sources_at(0, 100_000, shares, seed), minlength=len(shares))
    assert np.abs(counts / 100_000 - shares).max() < 0.005


@given(st.integers(0, 10_000), st.integers(0, 50), weights)
def test_the_source_follows_from_seed_and_position_alone(start, seed, values):
    shares = [value / sum(values) for value in values]
    assert np.array_equal(
        sources_at(0, start + 20, shares, seed)[start:], sources_at(start, 20, shares, seed)
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 99), st.data())
def test_where_a_mixture_ends(sizes, seed, data):
    values = data.draw(st.lists(st.floats(0.1, 1.0), min_size=len(sizes), max_size=len(sizes)))
    shares = [value / sum(values) for value in values]
    sources, rows = mixture(sizes, shares, seed, "first_exhausted")
    seen = [rows[sources == index] for index in range(len(sizes))]
    assert all(len(set(part)) == len(part) for part in seen), "no row comes twice"
    assert any(len(part) == size for part, size in zip(seen, sizes, strict=True)), "one source is used up"
    sources, rows = mixture(sizes, shares, seed, "all_exhausted")
    seen = [rows[sources == index].tolist() for index in range(len(sizes))]
    assert all(set(part) == set(range(size)) for part, size in zip(seen, sizes, strict=True)), (
        "every row was seen"
    )
    for part, size in zip(seen, sizes, strict=True):  # each pass is whole before the next begins
        assert all(
            len(set(part[start : start + size])) == len(part[start : start + size])
            for start in range(0, len(part), size)
        )


@given(st.integers(2, 3000), st.floats(0.001, 0.5))
def test_held_out_rows_are_the_wanted_share(count, fraction):
    held = is_held_out(np.arange(count), fraction)
    assert held.sum() == max(1, np.floor(count * fraction + 0.5))


documents = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=25)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(documents, st.integers(2, 17), st.sampled_from(["end_to_end", "best_fit"]))
def test_packing_keeps_every_token_in_order_within_its_document(docs, length, how):
    table = documents_table({"input_ids": [np.array(doc) for doc in docs]})
    rows = list(table_rows(pack(table, length, how)))
    assert all(row["seq_lengths"].sum() == len(row["input_ids"]) <= length for row in rows)
    pieces = [p for row in rows for p in np.split(row["input_ids"], np.cumsum(row["seq_lengths"])[:-1])]
    if how == "end_to_end":
        assert np.concatenate(pieces).tolist() == list(itertools.chain.from_iterable(docs))
        assert all(len(row["input_ids"]) == length for row in rows[:-1])
    else:
        wanted = [doc[start : start + length] for doc in docs for start in range(0, len(doc), length)]
        assert sorted(piece.tolist() for piece in pieces) == sorted(wanted)


def lengths_like(name, count=10_000):
    """The length distributions of the specification, log-normal or through published percentiles."""
    rng = np.random.default_rng(0)
    if name == "short":
        return np.maximum(1, np.exp(rng.normal(np.log(60), 0.8, count))).astype(int), 512
    if name == "medium":
        return np.maximum(1, np.exp(rng.normal(np.log(700), 1.0, count))).astype(int), 4096
    logs = np.log([50, 2138, 9194, 15433, 24834, 40000])
    return np.exp(np.interp(rng.random(count), [0, 0.5, 0.9, 0.95, 0.99, 1], logs)).astype(int), 8192


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", "medium", "long-tailed"])
def test_at_most_one_percent_is_padding(name):
    lengths, length = lengths_like(name)
    table = documents_table({"input_ids": [np.zeros(size, np.int32) for size in np.minimum(lengths, length)]})
    assert padding_share(row_lengths(pack(table, length, "best_fit")), length) <= 0.01


@pytest.fixture
def three_sources(tmp_path):
    """Two streams and a stored source, of different lengths, one with documents that are cut in pieces."""
    long = "\n\n".join(["The whale, the whale."] * 1200)
    return [
        {
            "name": write_rows(tmp_path / "a.jsonl", [{"text": f"a {i} of the sea"} for i in range(900)]),
            "streaming": True,
            "weight": 3,
        },
        {
            "name": write_rows(
                tmp_path / "b.jsonl", [{"text": f"b {i} " + long * (i % 7 == 0)} for i in range(60)]
            ),
            "streaming": True,
        },
        {
            "name": write_rows(tmp_path / "c.jsonl", [{"text": f"c {i} of the deck"} for i in range(70)]),
            "weight": 0.5,
        },
    ]


def rows_of(stream, count):
    return [row["input_ids"].tolist() for row in itertools.islice(stream, count)]


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["end_to_end", "best_fit"])
@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_a_stream_goes_on_from_any_place(tokenizer, three_sources, packing, stop):
    config = PretrainConfig(datasets=three_sources, eval_fraction=0.1, packing=packing, mixture_stop=stop)

    stream = several_windows(tokenizer, config)
    whole = list(itertools.islice(stream, 3000))
    for number in range(0, 2900, 137):
        place = LanePositions((whole[number][POSITION],))
        again = several_windows(tokenizer, config)
        again.load_state_dict(json.loads(json.dumps(place.state_dict())))
        encoded = []
        again.encode = noting(again.encode, encoded)
        assert rows_of(again, 20) == [row["input_ids"].tolist() for row in whole[number + 1 : number + 21]]
        assert len(encoded) <= 2, "nothing before the window is tokenised again"


def test_the_place_of_an_older_checkpoint_is_taken(tokenizer, three_sources):
    config = PretrainConfig(datasets=three_sources, eval_fraction=0.1)
    whole = list(itertools.islice(several_windows(tokenizer, config), 1500))
    place = whole[1400][POSITION]
    readers = [
        {"passes": at.passes, "number": at.number, "inside": None, "mark": at.mark}
        for at in place.windows.readers
    ]
    windows = {"position": place.windows.position, "done": list(place.windows.done), "readers": readers}
    again = several_windows(tokenizer, config)
    again.load_state_dict({"rows": place.rows, "inside": place.inside, "windows": windows})
    assert rows_of(again, 20) == [row["input_ids"].tolist() for row in whole[1401:1421]]


def noting(function, calls):
    return lambda argument: calls.append(argument) or function(argument)


def several_windows(tokenizer, config):
    stream = pretrain_data(config, tokenizer, 48).train
    stream.window = 30_000  # and several passes over the smallest source
    return stream


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of fewer cores
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_stream_goes_on_from_any_place_in_each_loader_process(tokenizer, three_sources, workers):
    config = PretrainConfig(datasets=three_sources, eval_fraction=0.1)

    def batches(stream, count, workers=workers):
        loader = DataLoader(stream, 8, num_workers=workers, collate_fn=PackedCollator(0))
        return list(itertools.islice(loader, count))

    whole = batches(several_windows(tokenizer, config), 320)
    if workers == 1:
        alone = batches(several_windows(tokenizer, config), 320, workers=0)
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(whole, alone, strict=True))
    for step in (1, 7, 300):
        place = LanePositions.at_start(workers).after(batch[POSITION] for batch in whole[:step])
        again = several_windows(tokenizer, config)
        again.load_state_dict(json.loads(json.dumps(place.state_dict())))
        for before, after in zip(whole[step : step + 20], batches(again, 20), strict=True):
            assert torch.equal(before["input_ids"], after["input_ids"])
            assert before[POSITION] == after[POSITION]
    assert place.rows == 300 * 8 and min(lane.windows.number for lane in place.lanes) > 0


def test_another_number_of_loader_processes_leaves_no_row_out(tokenizer, tmp_path):
    name = write_rows(tmp_path / "a.jsonl", [{"text": f"chapter {i} of the whale" * 9} for i in range(900)])
    config = PretrainConfig(datasets=[{"name": name, "streaming": True}], eval_fraction=0)
    loader = DataLoader(several_windows(tokenizer, config), 8, num_workers=2, collate_fn=PackedCollator(0))
    seen = list(itertools.islice(loader, 70))
    place = LanePositions.at_start(2).after(batch[POSITION] for batch in seen)
    again = several_windows(tokenizer, config)
    again.load_state_dict(place.state_dict())
    texts = [b["input_ids"].flatten().tolist() for b in seen] + rows_of(again, 3000)
    words = tokenizer.decode([token for text in texts for token in text])
    assert all(f"chapter {i} of" in words for i in range(0, 900, 10))


def test_a_stream_holds_out_what_training_never_sees(tokenizer, three_sources):
    data = pretrain_data(PretrainConfig(datasets=three_sources[:1], eval_fraction=0.1), tokenizer, 48)
    held = tokenizer.decode(np.concatenate([row["input_ids"] for row in data.eval["a"]]))
    trained = tokenizer.decode(
        np.concatenate([row["input_ids"] for row in itertools.islice(data.train, 400)])
    )
    numbers = {int(part.split()[1]) for part in held.split("<|endoftext|>") if part}
    assert len(numbers) == 90 and not any(f"a {number} of" in trained for number in numbers)


def test_stored_and_streamed_text_give_the_same_rows(tokenizer, tmp_path):
    name = write_rows(tmp_path / "a.jsonl", [{"text": f"chapter {i} of the whale"} for i in range(300)])
    stored, streamed = (
        pretrain_data(PretrainConfig(datasets=[{"name": name, "streaming": stream}]), tokenizer, 32).train
        for stream in (False, True)
    )
    count = len(stored) - 1
    assert [row["input_ids"].tolist() for row in stored][:count] == rows_of(streamed, count)


def test_sft_streams_too(tokenizer, tmp_path):
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(500)]
    name = write_rows(tmp_path / "a.jsonl", rows)
    data = sft_data(
        SFTConfig(datasets=[{"name": name, "streaming": True}], max_length=128, eval_fraction=0.1), tokenizer
    )
    first = next(iter(data.train))
    learned = first["input_ids"][first["labels"] != -100]
    assert set(tokenizer.decode(learned).split("<|im_end|>")) == {"Ahab", ""} and data.eval
    with pytest.raises(LabError, match="needs `packing`"):
        sft_data(SFTConfig(datasets=[{"name": name, "streaming": True}], packing=False), tokenizer)


def test_names_show_the_mixture():
    sources = [
        SourceConfig.model_validate(line)
        for line in ("imdb | | 7", "nyu-mll/glue | sst2 | 3", "HuggingFaceFW/fineweb-2 | fra_Latn | 0")
    ]
    assert mixture_name(sources) == "mix_imdb-70_sst2-30"
    assert short_names(sources) == ["imdb", "sst2", "fineweb-2-fra_Latn"]
    assert short_names(sources[:1] * 2) == ["imdb", "imdb-2"]


@pytest.mark.parametrize(
    "sources, message",
    [
        (["a | | -1"], r"`datasets.0.weight` -1.0 must be at least 0.0: use 0.0"),
        (["a | | 0", "b | | 0"], "weights that are all 0"),
        (["a | | nan"], "must be at least 0|not a finite"),
        (["a | | inf"], "not a finite number"),
        (["a | | x"], "the weight 'x'"),
    ],
)
def test_weights_that_are_none(sources, message):
    with pytest.raises(LabError, match=message):
        validate(PretrainConfig, {"kind": "pretrain", "datasets": sources})

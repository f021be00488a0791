"""Prepared data: complete or absent after a kill, built once by two at the same time,
safe from what it does not match.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from llmlab.config import PretrainConfig, SFTConfig
from llmlab.data.cache import cached, read_rows, write_tables
from llmlab.data.conversations import sft_data
from llmlab.data.packed_text import pretrain_data
from llmlab.data.tokenizer import load_tokenizer
from tests.waiting import PATIENCE

BUILDER = """
import sys, time
from pathlib import Path
from llmlab.data.cache import cached, read_rows, write_tables
def build(folder):
    print("building", flush=True)
    for part in range(20):
        (folder / f"part-{part}").write_bytes(bytes(1000))
        time.sleep(float(sys.argv[1]))
    return {"parts": 20}
folder, facts = cached({"of": "this test"}, build)
print(len(list(folder.glob("part-*"))), facts["parts"], flush=True)
"""


def builder(cache, pause):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LLMLAB_CACHE": str(cache)},
    )


def test_two_that_want_the_same_build_it_once(tmp_path):
    both = [builder(tmp_path, 0.02) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert all(output.endswith("20 20\n") for output in outputs)
    assert sum(output.count("building") for output in outputs) == 1


@pytest.mark.parametrize("moment", [0.02, 0.2, 0.5])
def test_killed_builds_leave_nothing_that_counts(tmp_path, moment):
    first = builder(tmp_path, 0.05)
    assert first.stdout.readline() == "building\n"
    time.sleep(moment)
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    assert [p.name for p in (tmp_path / "data").iterdir() if not p.name.startswith(".")] == []
    assert builder(tmp_path, 0).communicate(timeout=PATIENCE)[0] == "building\n20 20\n"
    assert not list((tmp_path / "data").glob(".building*"))


def test_a_failed_build_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        cached({"a": 1}, lambda folder: {"x": 1 / 0})
    assert cached({"a": 1}, lambda folder: {"x": 2})[1] == {"x": 2}


def test_everything_that_matters_makes_another_cache(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"prompt": "Who?", "completion": "Ahab"}\n' * 3)

    def folders(**changes):
        before = set((tmp_path / "cache" / "data").glob("[!.]*")) if (tmp_path / "cache").exists() else set()
        source = {"name": str(rows), **changes.pop("source", {})}
        sft_data(
            SFTConfig(**{"datasets": [source], "eval_fraction": 0, "packing": False, **changes}),
            changes.pop("with_tokenizer", tokenizer),
        )
        return len(set((tmp_path / "cache" / "data").glob("[!.]*")) - before)

    assert folders() == 1 and folders() == 0
    assert folders(seed=7) == 0, "the order is no part of the tokens"
    assert folders(max_length=99) == 1 and folders(loss_on="all") == 1 and folders(on_overflow="drop") == 1
    assert folders(source={"duplicates": "drop"}) == 1 and folders(source={"prompt": "Q: {prompt}"}) == 1
    rows.write_text('{"prompt": "Who?", "completion": "Stubb"}\n' * 3)
    assert folders() == 1
    sft = SFTConfig(datasets=[str(rows)], eval_fraction=0, packing=False)
    other = load_tokenizer("byte")
    count = len(list((tmp_path / "cache" / "data").glob("[!.]*")))
    sft_data(sft, other)
    other.chat_template = other.chat_template.replace("assistant", "helper")
    assert len(list((tmp_path / "cache" / "data").glob("[!.]*"))) == count + 1


def test_text_is_prepared_once_whatever_the_order(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    for seed in (1, 2):
        pretrain_data(PretrainConfig(datasets=["llmlab:moby-dick"], seed=seed), tokenizer, 64)
    assert len(list((tmp_path / "data").glob("[!.]*"))) == 2  # training and held-out rows


@pytest.mark.slow
def test_many_rows_are_tokenised_in_parallel_alike(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 100 else ""} for i in range(6000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SFTConfig(datasets=[str(tmp_path / "a.jsonl")], eval_fraction=0.1, packing=False)
    parallel = sft_data(config, tokenizer)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("llmlab.data.tokens.PARALLEL_FROM", 10_000)
    alone = sft_data(config, tokenizer)
    assert (
        parallel.facts == alone.facts
        and parallel.notes == alone.notes
        and parallel.facts["train_dropped"] == 60
    )
    assert parallel.train[:] == alone.train[:] and parallel.eval["a"][:] == alone.eval["a"][:]


@pytest.mark.parametrize("name", ["facts.json", "rows.arrow", "sums.json", "key.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff" * 700, None, "flipped", "cut", "folder"])
def test_damaged_data_is_built_again(tmp_path, monkeypatch, name, content):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    built = []

    def build(folder):
        built.append(folder)
        write_tables([pa.table({"a": list(range(500))})], folder / "rows.arrow")
        return {"rows": 500}

    folder, _ = cached({"of": "this test"}, build)
    file = folder / name
    whole = file.read_bytes()
    if content is None or content == "folder":
        file.unlink()
        if content:
            file.mkdir()
    elif content == "flipped":
        file.write_bytes(bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]]))
    else:
        file.write_bytes(whole[:-5] if content == "cut" else content)
    again, facts = cached({"of": "this test"}, build)
    assert len(built) == 2 and again == folder and facts == {"rows": 500}
    assert read_rows(folder / "rows.arrow")["a"] == list(range(500))
    assert cached({"of": "this test"}, build)[1] == facts and len(built) == 2

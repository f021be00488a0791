"""The reference cache: values are found by content in any order, parts are whole or named,
another reference is another cache.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.training.reference.cache import ReferenceCache, caches, item_key, nearest_difference
from tests.waiting import PATIENCE

ABOUT = {"reference": "abc", "precision": "fp32", "stores": "sums"}
ids = st.lists(st.integers(0, 50_000), max_size=6)
items = st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=30)


def value(item):
    """What a reference would say: a function of the content."""
    return [np.float32(sum(part) / 7 + len(part)) for part in item[1:]]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(items=items, data=st.data())
def test_any_order_subset_and_repetition_finds_its_own_values(tmp_path_factory, items, data):
    root = tmp_path_factory.mktemp("cache")
    cache = ReferenceCache.open(root, ABOUT)
    cut = data.draw(st.integers(0, len(items)))
    for part in (items[:cut], items[cut:]):
        keys = [item_key(item) for item in part]
        new = cache.missing(keys)
        cache.append([keys[i] for i in new], [value(part[i]) for i in new])
    asked = data.draw(st.lists(st.sampled_from(items), max_size=40))
    again = ReferenceCache.open(root, ABOUT)
    assert len(again) == len({item_key(item) for item in items}) and not again.faults
    for item in asked:
        assert again.get(item_key(item)).tolist() == [float(v) for v in value(item)]


@given(ids, ids)
def test_where_the_prompt_ends_is_part_of_the_key(prompt, answer):
    moved = item_key((prompt + answer, [], []))
    assert (moved == item_key((prompt, answer, []))) == (answer == [])
    assert item_key((prompt, answer, [1])) != item_key((prompt, [1], answer)) or answer == [1]


def filled(root, count=600, about=ABOUT):
    cache = ReferenceCache.open(root, about)
    made = [([i], [i, 1], [i, 2]) for i in range(count)]
    for start in range(0, count, 256):
        part = made[start : start + 256]
        cache.append([item_key(item) for item in part], [value(item) for item in part])
    return cache, made


def test_few_bytes_a_pair(tmp_path):
    rng = np.random.default_rng(0)
    cache = ReferenceCache.open(tmp_path, ABOUT)
    for start in range(0, 5000, 256):
        keys = [item_key(([start, i], [1], [2])) for i in range(256)]
        cache.append(keys, rng.normal(-200, 50, (256, 2)).tolist())
    assert cache.bytes_on_disk() / len(cache) <= 40


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swap", "hostile"])
def test_damaged_parts_are_named_and_never_read(tmp_path, damage):
    cache, made = filled(tmp_path)
    parts = sorted(cache.folder.glob("part-*.parquet"))
    content = bytearray(parts[0].read_bytes())
    lost = {
        len(json.loads(line)) and json.loads(line)["part"]: json.loads(line)["rows"]
        for journal in cache.folder.glob("parts-*.jsonl")
        for line in journal.read_text().splitlines()
    }[parts[0].stem[5:]]
    if damage == "flip":
        content[len(content) // 2] ^= 4
        parts[0].write_bytes(content)
    elif damage == "cut":
        parts[0].write_bytes(content[:-9])
    elif damage == "gone":
        parts[0].unlink()
    elif damage == "swap":
        parts[0].write_bytes(parts[1].read_bytes())
    else:
        parts[0].write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    again = ReferenceCache.open(tmp_path, ABOUT)
    assert len(again) == len(made) - lost
    assert len(again.faults) == 1 and parts[0].stem[:17] in again.faults[0]
    assert ("is gone" if damage == "gone" else "is damaged") in again.faults[0]
    keys = [item_key(item) for item in made]
    new = again.missing(keys)
    again.append([keys[i] for i in new], [value(made[i]) for i in new])
    assert len(again) == len(made)


def test_a_kill_between_part_and_journal_loses_nothing(tmp_path):
    cache, made = filled(tmp_path)
    journal = next(cache.folder.glob("parts-*.jsonl"))
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:20])
    (cache.folder / ".part-dead").write_bytes(b"half a part")
    again = ReferenceCache.open(tmp_path, ABOUT)
    assert len(again) == len(made) and not again.faults


def test_two_writers_see_each_other(tmp_path):
    one, two = ReferenceCache.open(tmp_path, ABOUT), ReferenceCache.open(tmp_path, ABOUT)
    one.append([item_key(([1], [2], [3]))], [[1.0, 2.0]])
    two.append([item_key(([4], [5], [6]))], [[3.0, 4.0]])
    one.read()
    assert len(one) == 2 and one.get(item_key(([4], [5], [6]))).tolist() == [3.0, 4.0]


def test_another_description_is_another_cache_and_the_difference_is_told(tmp_path):
    filled(tmp_path)
    other = {**ABOUT, "precision": "bf16"}
    assert len(ReferenceCache.open(tmp_path, other)) == 0
    assert "precision (fp32 there, bf16 here)" in nearest_difference(tmp_path, other)
    assert "reference (abc there, xyz here)" in nearest_difference(
        tmp_path, {**other, "reference": "xyz"}
    ) or ("reference (abc there, xyz here)" in nearest_difference(tmp_path, {**ABOUT, "reference": "xyz"}))
    assert [len(cache) for cache in caches(tmp_path)].count(600) == 1


def test_per_token_values_and_items_of_one_answer(tmp_path):
    about = {**ABOUT, "stores": "tokens"}
    cache = ReferenceCache.open(tmp_path, about)
    key = item_key(([1], [2, 3, 4]))
    cache.append([key], [[np.array([-1.0, -2.0, -3.5])]])
    again = ReferenceCache.open(tmp_path, about)
    assert [part.tolist() for part in again.get(key)] == [[-1.0, -2.0, -3.5]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad):
    cache = ReferenceCache.open(tmp_path, ABOUT)
    with pytest.raises(ValueError, match="not finite"):
        cache.append([item_key(([1], [2], [3]))], [[bad, 0.0]])
    assert not list(cache.folder.glob("part-*"))


WRITER = """
import sys
from pathlib import Path

from llmlab.training.reference.cache import ReferenceCache, item_key

ABOUT = {"reference": "abc", "precision": "fp32", "stores": "sums"}
with ReferenceCache.open(Path(sys.argv[1]), ABOUT) as cache:
    for number, line in enumerate(sys.stdin):
        cache.append([item_key(([number], [1], [2]))], [[1.0, 2.0]])
        print(number, flush=True)
print("closed", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_clear_leaves_alone_what_another_process_fills(tmp_path):
    def cleared(*arguments):
        return CliRunner().invoke(app, ["cache", "clear", *arguments, "--yes", "--cache-dir", str(tmp_path)])

    def say(writer, line):
        writer.stdin.write("more\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == line

    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    for end in ("closed", "killed"):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            try:
                say(writer, "0\n")
                folder = next(cache.folder for cache in caches(tmp_path))
                result = cleared(folder.name)
                assert (
                    result.exit_code == 2 and f"skipped, in use by process {writer.pid} on " in result.output
                )
                filled(tmp_path, 3, {**ABOUT, "reference": "other"})[0].close()
                result = cleared()  # the other one
                assert result.exit_code == 0 and "3 pairs" in result.output and "skipped" in result.output
                assert [cache.folder for cache in caches(tmp_path)] == [folder]
                say(writer, "1\n")
                if end == "closed":
                    writer.stdin.close()
                    assert writer.stdout.readline() == "closed\n" and writer.wait(PATIENCE) == 0
                else:
                    writer.kill()
                    writer.wait(PATIENCE)
            finally:
                writer.kill()
        assert [len(cache) for cache in caches(tmp_path)] == [2] and not caches(tmp_path)[0].faults
        result = cleared()
        assert result.exit_code == 0 and "2 pairs" in result.output and not caches(tmp_path)


def test_what_killed_runs_left_goes_when_the_cache_is_opened_again(tmp_path):
    with ReferenceCache.open(tmp_path, ABOUT) as cache:
        (cache.folder / ".in-use-1@there-0").touch()
    with ReferenceCache.open(tmp_path, ABOUT) as cache:
        assert len(list(cache.folder.glob(".in-use-*"))) == 1
    assert not list(cache.folder.glob(".in-use-*"))

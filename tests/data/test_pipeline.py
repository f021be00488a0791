"""Every method's rows go through the same stages, and what becomes of each row is counted and told."""

import json

import pytest

from llmlab.config import SourceConfig
from llmlab.config.loader import kind_class
from llmlab.data.conversations import sft_data
from llmlab.data.inspect import inspect
from llmlab.data.packed_text import document_texts, pretrain_data
from llmlab.data.pairs import dpo_data, dual_head_data
from llmlab.data.prompts import prompts_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.evaluation.sources import measure
from tests.conftest import small_model

READ = {
    "pretrain": lambda *args: pretrain_data(*args, 64),
    "sft": sft_data,
    "dpo": dpo_data,
    "reward": dpo_data,
    "dual_head": dual_head_data,
    "grpo": prompts_data,
    "ppo": prompts_data,
}
ROWS = {
    "pretrain": {"text": "Whale {n}."},
    "sft": {"prompt": "Who is {n}?", "completion": "Ahab {n}"},
    "dpo": {"prompt": "Who is {n}?", "chosen": "Ahab {n}", "rejected": "Pip {n}"},
    "grpo": {"prompt": "Who is {n}?", "answer": "Ahab {n}"},
}
ROWS |= {"reward": ROWS["dpo"], "dual_head": ROWS["dpo"], "ppo": ROWS["grpo"]}
EMPTY = {"pretrain": "empty text"}
TOO_LONG = {"grpo": "max_prompt_length", "ppo": "max_prompt_length"}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = load_tokenizer("byte")
    ensure_chat_template(tokenizer)
    return tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def filled(kind, n):
    return {column: text.format(n=n) for column, text in ROWS[kind].items()}


def config(kind, source, **changes):
    limits = {} if kind in ("pretrain", "grpo", "ppo") else {"max_length": 96}
    limits |= {"max_prompt_length": 90} if kind not in ("pretrain", "sft") else {}
    packing = {"packing": True} if kind == "sft" else {}
    return kind_class(kind)(datasets=[source], **{"eval_fraction": 0.0, **limits, **packing, **changes})


@pytest.mark.parametrize("kind", ROWS)
def test_every_row_is_kept_held_out_or_left_out_with_its_reason(kind, tmp_path, tokenizer):
    rows = [filled(kind, n) for n in range(20)]
    first, last = next(iter(ROWS[kind])), list(ROWS[kind])[-1]
    needed = last if "rejected" in rows[0] else first
    rows[3] = {**rows[3], needed: None}
    rows[4] = {**rows[4], last: " "}
    rows[6] = rows[7] = rows[5]
    long = {"pretrain": 0, "grpo": 1, "ppo": 1}.get(kind, 1)
    if long:
        rows[8] = {**rows[8], first: "Who? " * 100}
    source = {"name": write(tmp_path / "a.jsonl", rows), "bad_rows": "drop", "duplicates": "drop"}
    overlong = {} if kind in ("pretrain", "grpo", "ppo") else {"overlong": "drop"}
    data = READ[kind](config(kind, source, eval_fraction=0.1, **overlong), tokenizer)
    (counts,) = data.sources
    reasons = sorted(counts["left_out"].items())
    assert [count for _, count in reasons] == [1] * (len(reasons) - 1) + [2]
    told = " ".join(reason for reason, _ in reasons)
    assert EMPTY.get(kind, "empty answer") in told and f"no value in column '{needed}'" in told
    assert "the same as an earlier row" in told and (not long or TOO_LONG.get(kind, "max_length") in told)
    left_out = sum(counts["left_out"].values())
    assert (counts["read"], left_out, counts["held_out"]) == (20, 4 + bool(long), 2)
    assert counts["kept"] == 20 - left_out - 2
    if kind not in ("pretrain", "sft"):  # whose rows are packed
        assert (len(data.train), sum(map(len, data.eval.values()))) == (counts["kept"], 2)


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_are_there_twice_and_stay_are_told(kind, tmp_path, tokenizer):
    rows = [filled(kind, n) for n in (1, 2, 1, 1)]
    path = write(tmp_path / "a.jsonl", rows)
    data = READ[kind](config(kind, path), tokenizer)
    assert f"kept 2 rows: the same as an earlier row (first: {path}, row 3)" in data.notes


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_rows_are_told_where_they_are_now(kind, tmp_path, tokenizer):
    """Their tokens were stored when the file had another name."""
    rows = [filled(kind, n) for n in range(5)] + [{**filled(kind, 9), list(ROWS[kind])[-1]: ""}]
    for name in ("before", "after"):
        path = write(tmp_path / f"{name}.jsonl", rows)
        notes = READ[kind](config(kind, path), tokenizer).notes
        assert len(notes) == 1 and notes[0].endswith(f"(first: {path}, row 6)")


def test_rows_that_come_again_are_counted_once(tmp_path, tokenizer):
    short = write(tmp_path / "a.jsonl", [{"text": text} for text in ("Ahab", " ", "Ahab")])
    long = write(tmp_path / "b.jsonl", [filled("pretrain", n) for n in range(40)])
    both = config("pretrain", short).model_copy(
        update={"datasets": [SourceConfig(name=short), SourceConfig(name=long)]}
    )
    data = pretrain_data(both.model_copy(update={"mixture_stop": "all_exhausted"}), tokenizer, 64)
    assert data.notes == [
        f"left out 1 row: empty text (first: {short}, row 2)",
        f"kept 1 row: the same as an earlier row (first: {short}, row 3)",
    ]
    assert data.sources[0]["read"] == 3 and data.sources[1]["kept"] == 40


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_malformed_row_of_a_stream_is_refused_before_the_run(kind, tmp_path, tokenizer):
    rows = [filled(kind, n) for n in range(300)]
    rows[200] = {**rows[200], next(iter(ROWS[kind])): None}
    source = {"name": write(tmp_path / "a.jsonl", rows), "streaming": True}
    with pytest.raises(LabError, match="row 201: no value in column"):
        READ[kind](config(kind, source), tokenizer)
    READ[kind](config(kind, {**source, "bad_rows": "drop"}), tokenizer)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_chat_template_leaves_out_is_refused_in_a_stream_too(streaming, tmp_path, tokenizer):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    talk = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ahab", "tool_calls": [call]},
    ]
    rows = [{"messages": [{**turn, "tool_calls": None} for turn in talk]}, {"messages": talk}]
    source = {"name": write(tmp_path / "a.jsonl", rows), "streaming": streaming}
    with pytest.raises(LabError, match="row 2: the chat template leaves out the `tool_calls`"):
        next(iter(sft_data(config("sft", source), tokenizer).train))
    row = next(iter(sft_data(config("sft", {**source, "bad_rows": "drop"}), tokenizer).train))
    assert tokenizer.decode(row["input_ids"]).count("Ahab") == len(row["seq_lengths"])


@pytest.mark.parametrize(
    "kind, rows", [("pretrain", [{"text": " "}]), ("sft", [{"prompt": "Who? " * 50, "completion": "Ahab"}])]
)
def test_a_stream_of_nothing_ends_with_the_reason(kind, rows, tmp_path, tokenizer):
    source = {"name": write(tmp_path / "a.jsonl", rows * 3), "streaming": True}
    with pytest.raises(LabError, match=r"nothing to train on: left out .* (empty text|nothing to learn)"):
        next(iter(READ[kind](config(kind, source), tokenizer).train))


def test_what_is_left_out_of_the_validation_of_a_stream_is_told(tmp_path, tokenizer):
    train = {"name": write(tmp_path / "a.jsonl", [filled("sft", n) for n in range(9)]), "streaming": True}
    rows = [filled("sft", 1), {"prompt": "Who?", "completion": " "}, {"prompt": "x" * 200, "completion": "y"}]
    held_out = write(tmp_path / "b.jsonl", rows)
    data = sft_data(config("sft", train, eval_datasets=[held_out]), tokenizer)
    assert data.notes == [
        f"left out 1 row: empty answer (first: {held_out}, row 2)",
        f"left out 1 row: nothing to learn within `max_length` 96 (first: {held_out}, row 3)",
    ]


@pytest.mark.parametrize("max_rows, read", [(None, 5), (8, 8)])
def test_validation_reads_the_head_of_a_stream(max_rows, read, tmp_path, tokenizer, monkeypatch):
    for module in ("reader", "packed_text"):
        monkeypatch.setattr(f"llmlab.data.{module}.HEAD", 5)
    path = write(tmp_path / "a.jsonl", [filled("pretrain", n) for n in range(40)])
    streamed = {"name": path, "streaming": True}
    data = pretrain_data(
        config("pretrain", streamed, eval_datasets=[{**streamed, "max_rows": max_rows}]), tokenizer, 64
    )
    tokens = [token for row in data.eval["a"] for token in row["input_ids"]]
    assert tokens.count(tokenizer.eos_token_id) == read
    told = f"validation reads the first 5 rows of {path}"
    assert (told in data.notes) is (max_rows is None)


@pytest.mark.parametrize("duplicates, count", [("keep", 4), ("drop", 2)])
def test_doubles_are_dropped_wherever_a_source_is_read(duplicates, count, tmp_path, tokenizer):
    model = small_model(vocab_size=len(tokenizer))
    pairs = [filled("sft", n) for n in (1, 2, 1, 1)]
    source = SourceConfig(name=write(tmp_path / "a.jsonl", pairs), duplicates=duplicates)
    assert len(list(document_texts(source))) == count
    assert len(inspect(source, tokenizer).lengths["row"]) == count
    measured = measure(model, tokenizer, source)
    assert measured.rows == count and "2 rows: the same as an earlier row" in measured.notes[0]
    rewarded = measure(model, tokenizer, source, reward=lambda p, a, r: [0.0] * len(a), max_new_tokens=1)
    assert rewarded.rows == count

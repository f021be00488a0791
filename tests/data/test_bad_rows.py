"""Bad input: one message with file and row; nothing left behind; counts of what was left out, and why."""

import gzip
import json
import os

import pytest
import zstandard
from datasets import Dataset

from llmlab.config import DPOConfig, SFTConfig, SourceConfig
from llmlab.data.conversations import sft_data
from llmlab.data.inspect import inspect
from llmlab.data.pairs import dpo_data
from llmlab.data.sources import load_rows
from llmlab.data.tokenizer import _cut_words, load_tokenizer, train_tokenizer
from llmlab.errors import LabError

GOOD = {"prompt": "Who?", "completion": "Ahab"}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def talk(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


FATAL = {
    "missing column": ([GOOD, {"prompt": "Where?"}], r"row 2: no value in column 'completion'"),
    "wrong type": (
        [GOOD, GOOD, {"prompt": 7, "completion": "x"}],
        "row 3: column 'prompt' holds a whole number, not text or a list",
    ),
    "cut off": ([GOOD, '{"prompt": "Who?", "comp'], r"row 2 is not valid JSON \(it seems truncated\)"),
    "no object": ([GOOD, "[1, 2]"], r"row 2 is a list, not an object"),
    "roles": (
        [talk(("user", "a"), ("assistant", "b")), talk(("user", "a"), ("user", "b"), ("assistant", "c"))],
        r"row 2: roles do not alternate: turn 2 is 'user' after 'user'",
    ),
    "assistant first": ([talk(("assistant", "b"))], r"row 1: roles do not alternate: turn 1 is 'assistant'"),
    "unknown role": ([talk(("wizard", "a"), ("assistant", "b"))], r"row 1: unknown role 'wizard'"),
}


@pytest.mark.parametrize("case", FATAL)
def test_rows_of_a_malformed_stop_the_run_before_it_starts(tokenizer, tmp_path, case):
    rows, message = FATAL[case]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(LabError, match=message) as caught:
        sft_data(SFTConfig(datasets=[path], eval_fraction=0), tokenizer)
    assert str(caught.value).startswith(f"{path}") and "\n" not in str(caught.value)


def test_or_are_left_out_where_the_person_says_so(tokenizer, tmp_path):
    path = write(
        tmp_path / "a.jsonl", [GOOD, {"prompt": "Where?"}, {"prompt": "Ship?", "completion": "Pequod"}]
    )
    data = sft_data(SFTConfig(datasets=[{"name": path, "bad_rows": "drop"}], eval_fraction=0), tokenizer)
    assert data.facts["train_rows"] == 2 and data.notes == [
        f"left out 1 row: no value in column 'completion' (first: {path}, row 2)"
    ]


def test_rows_with_nothing_to_teach_are_counted_with_their_reasons(tokenizer, tmp_path):
    rows = [
        GOOD,
        {"prompt": "Ship?", "completion": " "},
        GOOD,
        {"prompt": "x " * 90, "completion": "late"},
        {"prompt": "A?", "completion": "b"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    data = sft_data(SFTConfig(datasets=[path], eval_fraction=0, max_length=60), tokenizer)
    assert data.notes == [
        f"left out 1 row: empty answer (first: {path}, row 2)",
        f"left out 1 row: nothing to learn within `max_length` 60 (first: {path}, row 4)",
        f"kept 1 row: the same as an earlier row (first: {path}, row 3)",
    ]
    data = sft_data(
        SFTConfig(datasets=[{"name": path, "duplicates": "drop"}], eval_fraction=0, max_length=60), tokenizer
    )
    assert data.facts["train_rows"] == 2


@pytest.mark.parametrize("overlong, rows, cut", [("cut", 2, 1), ("drop", 1, 0)])
def test_rows_longer_than_max_length(tokenizer, tmp_path, overlong, rows, cut):
    path = write(tmp_path / "a.jsonl", [GOOD, {"prompt": "Tell", "completion": "the whale " * 50}])
    data = sft_data(SFTConfig(datasets=[path], eval_fraction=0, max_length=48, overlong=overlong), tokenizer)
    assert (data.facts["train_rows"], data.facts["train_cut"]) == (rows, cut)
    assert any("longer than `max_length`" in note and f"{path}, row 2" in note for note in data.notes)


def test_pairs_that_teach_nothing(tokenizer, tmp_path):
    rows = [
        {"prompt": "Who?", "chosen": "Ahab", "rejected": "Stubb"},
        {"prompt": "Who?", "chosen": "Ahab", "rejected": "Ahab"},
        {"prompt": "Who?", "chosen": "", "rejected": "Stubb"},
        {"prompt": "Ship?", "chosen": "the whale " * 30 + "a", "rejected": "the whale " * 30 + "b"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    data = dpo_data(
        DPOConfig(datasets=[path], eval_fraction=0, max_length=64, max_prompt_length=40), tokenizer
    )
    assert data.facts["train_pairs"] == 1 and data.facts["train_dropped"] == 3
    reasons = " ".join(data.notes)
    assert (
        "chosen and rejected are equal" in reasons
        and "empty answer" in reasons
        and "equal answers within" in reasons
    )
    path = write(tmp_path / "b.jsonl", [{"prompt": "Who?", "chosen": "Ahab"}] * 2)
    with pytest.raises(LabError, match=r"holds prompt rows .*needed: preference rows"):
        dpo_data(DPOConfig(datasets=[path]), tokenizer)


@pytest.mark.parametrize(
    "name, make, message",
    [
        (
            "a.txt",
            lambda p: p.write_bytes(b"good\n" * 3 + b"\xff\xfe bad\n"),
            r"not UTF-8 text \(invalid start byte in line 4, byte 1\)",
        ),
        (
            "a.jsonl",
            lambda p: p.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n'),
            r"not UTF-8 text \(invalid start byte in line 2",
        ),
        (
            "a.parquet",
            lambda p: (Dataset.from_list([GOOD] * 9).to_parquet(p), p.write_bytes(p.read_bytes()[:-20])),
            "damaged or not a parquet",
        ),
        ("a.arrow", lambda p: p.write_bytes(b"ARROW1\0\0rubbish"), "damaged or not a arrow"),
        (
            "a.csv",
            lambda p: p.write_text("text,label\nfine,1\nno, it, is\n"),
            "row 2 has 3 columns instead of 2",
        ),
        ("a.json", lambda p: p.write_text('[{"text": "a"}, {"text": ]'), "not valid JSON"),
        (
            "a.jsonl.gz",
            lambda p: p.write_bytes(gzip.compress(b'{"text": "a"}\n' * 5000)[:-30]),
            "damaged after line",
        ),
    ],
)
def test_damaged_files(tmp_path, name, make, message):
    path = tmp_path / name
    make(path)
    with pytest.raises(LabError, match=message) as caught:
        list(load_rows(SourceConfig(name=str(path))))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_compressed_files_are_read(tmp_path):
    line = json.dumps(GOOD).encode() + b"\n"
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line * 3))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"Call me Ishmael."))
    assert len(load_rows(SourceConfig(name=str(tmp_path / "a.jsonl.zst")))) == 3
    assert load_rows(SourceConfig(name=str(tmp_path / "b.txt.zst")))[0]["text"] == "Call me Ishmael."


def test_rows_are_numbered_within_their_file(tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", [GOOD] * 3)
    write(tmp_path / "b.jsonl", [GOOD, {"prompt": "x", "completion": None}])
    with pytest.raises(LabError, match=r"b\.jsonl, row 2: no value"):
        sft_data(SFTConfig(datasets=[str(tmp_path)], eval_fraction=0), tokenizer)


def test_a_row_limit_is_spread_over_sorted_sources(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": int(i >= 50)} for i in range(100)])
    assert load_rows(SourceConfig(name=path, max_rows=10))["label"] == [0] * 5 + [1] * 5


def test_inspection_says_what_training_will_see(tokenizer, tmp_path):
    rows = [{"prompt": "Who?", "completion": "Ahab " * (i % 30 + 1)} for i in range(300)] + [
        {"prompt": "x", "completion": ""}
    ]
    found = inspect(SourceConfig(name=write(tmp_path / "a.jsonl", rows)), tokenizer)
    assert found.rows == 301 and found.shape == "prompt_completion" and found.complete
    assert (
        found.notes[0].startswith("left out 1 row: empty answer") and "270 rows: the same" in found.notes[1]
    )
    whole, prompt, completion = (found.lengths[part] for part in ("row", "prompt", "completion"))
    assert (whole == prompt + completion).all() and found.percentiles["row"][-1] == whole.max()
    data = sft_data(
        SFTConfig(datasets=[str(tmp_path / "a.jsonl")], eval_fraction=0, max_length=512), tokenizer
    )
    assert sum(map(len, data.train["input_ids"])) == whole.sum(), "the same tokens as in training"
    fit = next(fit for fit in found.fits if fit.length == 512)
    assert (
        fit.packed == pytest.approx(data.facts["padding"], abs=1e-3) and fit.packed < fit.longest < fit.padded
    )
    length, reason = found.suggested
    assert (whole <= length).mean() >= 0.95 > (whole <= length // 2).mean() and "fit" in reason
    learned = "".join(text for text, bears in found.sample if bears)
    assert learned == "Ahab <|im_end|>" or learned == "Ahab<|im_end|>"


def test_inspection_without_a_template_and_of_pairs(tmp_path):
    found = inspect(SourceConfig(name="llmlab:moby-dick", max_rows=10), load_tokenizer("byte"))
    assert found.shape == "text" and found.sample[0][1]
    path = write(tmp_path / "p.jsonl", [{"prompt": "Who?", "chosen": "Ahab", "rejected": "Stubb"}] * 2)
    found = inspect(SourceConfig(name=path), load_tokenizer("byte"))
    assert set(found.lengths) == {"prompt", "chosen", "rejected", "row"}


def test_a_folder_with_an_entry_that_cannot_be_read_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "a" / "secret").mkdir(parents=True)
    write(tmp_path / "a" / "rows.jsonl", [GOOD])
    look = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)  # a superuser may read anything
    with pytest.raises(LabError, match=r"secret: cannot be read \(Permission denied\)"):
        load_rows(SourceConfig(name=str(tmp_path / "a")))
    monkeypatch.setattr("llmlab.data.local.MOST_ENTRIES", 2)
    write(tmp_path / "a" / "more.jsonl", [GOOD])
    with pytest.raises(LabError, match="has more than 2 entries"):
        load_rows(SourceConfig(name=str(tmp_path / "a")))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "circle.jsonl").symlink_to("circle.jsonl")
    (tmp_path / "b" / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(LabError, match="no readable files"):
        load_rows(SourceConfig(name=str(tmp_path / "b")))


@pytest.mark.parametrize(
    "row",
    [{**GOOD, "": " "}, {"question": "Who?", "answer": "Ahab", "": "x"}, {**GOOD, "system": None, ".": 1}],
)
def test_columns_without_a_name_are_no_part_of_a_row(tokenizer, tmp_path, row):
    data = sft_data(SFTConfig(datasets=[write(tmp_path / "a.jsonl", [row])], eval_fraction=0), tokenizer)
    assert data.facts["train_rows"] == 1


def test_a_tokenizer_is_learned_from_words_without_an_end():
    words = ["a" * 300_000 + " b", "=" * 5000, "\n" * 5000, "Call me Ishmael. " * 100, "x" * 999 + " y"]
    assert ["".join(_cut_words([text])) for text in words] == words and len(list(_cut_words(words[3:]))) == 2
    assert train_tokenizer(words, 264).get_vocab()["aaaaaaaa"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("rows.json", '[null, {"text": "Ahab"}]', "row 1 is null, not an object"),
        ("rows.json", '[{"text": "Ahab"}, [1]]', "row 2 is a list, not an object"),
        ("rows.csv", '{"a":' * 50_000 + "1" + "}" * 50_000, "cannot be read as csv after row 0"),
    ],
)
def test_rows_that_abort_their_reader_are_one_message(tmp_path, name, content, message):
    """An array that begins with null ended the process in pyarrow;
    a field without end was a traceback of the csv module.
    """
    (tmp_path / name).write_text(content)
    with pytest.raises(LabError, match=message):
        load_rows(SourceConfig(name=str(tmp_path / name)))

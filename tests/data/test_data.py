"""Data: sources and their errors, shapes, tokenizers, masks, packing, the cache."""

import gzip
import itertools
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.config import DPOConfig, PretrainConfig, SFTConfig, SourceConfig
from llmlab.data.conversations import sft_data
from llmlab.data.mapping import RowMapping
from llmlab.data.messages import parse_conversation
from llmlab.data.packed_text import pretrain_data
from llmlab.data.packing import PackedCollator
from llmlab.data.pairs import dpo_data
from llmlab.data.rendering import assistant_spans, tokenize_conversation
from llmlab.data.schemas import InvalidRow
from llmlab.data.sources import load_rows
from llmlab.data.tasks import TASKS, distinct_questions, is_held_out, questions
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer, train_tokenizer
from llmlab.errors import LabError

TALK = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Add 3 and 14."},
    {"role": "assistant", "content": "17"},
    {"role": "user", "content": "And Ahab’s ship?"},
    {"role": "assistant", "content": "The Pequod, of Nantucket."},
]


def test_text_files_become_documents(tmp_path):
    (tmp_path / "a.txt").write_text("Call me Ishmael.\n\n" + "word " * 9000 + "\n\nAnd that is the end.")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("Some years ago")
    rows = load_rows(SourceConfig(name=str(tmp_path)))
    assert [len(row["text"]) > 10 for row in rows] == [True] * 3
    assert rows[2]["text"] == "Some years ago"


@pytest.mark.parametrize(
    "suffix, write",
    [
        ("jsonl", lambda p, rows: p.write_text("".join(json.dumps(r) + "\n" for r in rows))),
        ("csv", lambda p, rows: p.write_text("text\n" + "".join(f'"{r["text"]}"\n' for r in rows))),
        ("parquet", lambda p, rows: __import__("datasets").Dataset.from_list(rows).to_parquet(p)),
    ],
)
def test_table_files(tmp_path, suffix, write):
    rows = [{"text": "one"}, {"text": "two"}]
    write(tmp_path / f"a.{suffix}", rows)
    assert load_rows(SourceConfig(name=str(tmp_path / f"a.{suffix}")))["text"] == ["one", "two"]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("empty.txt", b"", "is empty"),
        ("space.txt", b" \n\n ", "is empty"),
        ("binary.txt", b"\x7fELF\0\0\0", "binary file"),
        ("latin.txt", "é".encode("latin-1") * 20, "not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', r"row 2 is not valid JSON \(it seems truncated\)"),
        ("image.png", b"\x89PNG", "cannot be read"),
        (None, b"", "no such file"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, name, content, expected):
    path = tmp_path / (name or "nowhere.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(LabError, match=expected) as caught:
        list(load_rows(SourceConfig(name=str(path))))
    assert str(path) in str(caught.value)


def test_a_folder_without_texts(tmp_path):
    with pytest.raises(LabError, match="no readable files"):
        load_rows(SourceConfig(name=str(tmp_path)))


def test_a_hub_id_offline_says_so_and_names_alternatives():
    with pytest.raises(LabError) as caught:
        load_rows(SourceConfig(name="HuggingFaceFW/fineweb-edu"))
    assert "could not be downloaded from the hub" in str(caught.value) and "llmlab:moby-dick" in str(
        caught.value
    )


def test_a_tokenizer_that_is_nowhere():
    for name in ("Qwen/Qwen2.5-0.5B", "checkpoints/none"):
        with pytest.raises(LabError):
            load_tokenizer(name)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_tokenizers_lose_nothing(tokenizer, text):
    for each in (tokenizer, load_tokenizer("byte")):
        ids = each(text, add_special_tokens=False)["input_ids"]
        if not any(token in text for token in each.all_special_tokens):
            assert each.decode(ids, skip_special_tokens=False) == text


def test_vocabulary_size_is_the_users_choice():
    texts = [row["text"] for row in load_rows(SourceConfig(name="llmlab:moby-dick", max_rows=5))]
    assert len(train_tokenizer(texts, 700)) == 700
    with pytest.raises(LabError, match="too small"):
        train_tokenizer(texts, 100)
    with pytest.raises(LabError, match="gives only"):
        train_tokenizer(["abc"], 5000)


def test_digits_are_single_tokens(tokenizer):
    assert [tokenizer.decode(i) for i in tokenizer("1851", add_special_tokens=False)["input_ids"]] == list(
        "1851"
    )


def test_mask_is_the_templates_own_and_the_assistants_words(tokenizer):
    made = tokenize_conversation(tokenizer, TALK, "assistant")
    marked = tokenizer.apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    assert made["input_ids"] == marked["input_ids"]
    assert made["labels"] == [
        i if m else -100 for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    ]
    learned = [label for label in made["labels"] if label != -100]
    assert tokenizer.decode(learned) == "17<|im_end|>The Pequod, of Nantucket.<|im_end|>"
    assert tokenize_conversation(tokenizer, TALK, "all")["labels"] == made["input_ids"]


def test_of_a_template_that_rewrites_history_the_last_answer_is_learned(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.content }}|{% else %}..."
        "{% endif %}{% endfor %}"
    )
    text, spans = assistant_spans(tokenizer, TALK)
    assert [text[begin:end] for begin, end in spans] == [TALK[-1]["content"] + "|"]


def test_a_tokenizer_without_template_gets_one():
    tokenizer = load_tokenizer("byte")
    tokenizer.chat_template = None
    ends = ensure_chat_template(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]


def test_collator_separates_padding_and_first_tokens():
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]},
        {"input_ids": [4, 4], "labels": [4, 4]},
    ]
    batch = PackedCollator(pad_token_id=0)(rows)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, 9], [-100, 4, -100, -100, -100]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 4, 0, 0, 0]]


def test_base_data_is_cached_whole_and_held_out_apart(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    config = PretrainConfig(datasets=[SourceConfig(name="llmlab:moby-dick", max_rows=20)], eval_fraction=0.1)
    first = pretrain_data(config, tokenizer, 64)
    monkeypatch.setattr("llmlab.data.packed_text.write_tables", lambda *_: pytest.fail("was built twice"))
    again = pretrain_data(config, tokenizer, 64)
    assert first.facts == again.facts and first.eval
    assert np.array_equal(first.train[3]["input_ids"], again.train[3]["input_ids"])
    assert again.train.cache_files, "rows are read from disk"
    train = {tuple(row["input_ids"]) for row in first.train}
    assert not any(tuple(row["input_ids"]) in train for row in first.eval["moby-dick"])


def test_a_failed_build_leaves_no_cache(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmlab.data.packed_text.write_tables", full)
    config = PretrainConfig(datasets=[SourceConfig(name="llmlab:moby-dick", max_rows=20)])
    with pytest.raises(LabError, match="No space left"):
        pretrain_data(config, tokenizer, 64)
    assert [name for name in os.listdir(tmp_path / "data") if not name.endswith(".lock")] == []


@pytest.mark.slow
def test_mixtures_follow_their_weights(tokenizer, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": f"{name}{i}", "completion": name}) + "\n" for i in range(2000))
        )
    config = SFTConfig(
        datasets=[f"{tmp_path}/a.jsonl | | 3", f"{tmp_path}/b.jsonl | | 1"],
        packing=False,
        eval_fraction=0,
        max_length=64,
    )
    rows = sft_data(config, tokenizer).train
    share = sum("a<|im_end|>" in tokenizer.decode(row["input_ids"]) for row in rows) / len(rows)
    assert 0.72 < share < 0.78


def test_sft_rows_without_anything_to_learn_are_counted(tokenizer, tmp_path):
    rows = [
        {"prompt": "x " * 100, "completion": "lost"},
        {"prompt": "Who?", "completion": "Ahab"},
        {"prompt": "Ship?", "completion": "Pequod"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = sft_data(SFTConfig(datasets=[f"{tmp_path}/a.jsonl"], max_length=48, eval_fraction=0), tokenizer)
    assert (data.facts["train_rows"], data.facts["train_dropped"], data.facts["train_cut"]) == (2, 1, 0)


def test_wrong_shapes_show_the_columns(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"foo": "1"}\n{"foo": "2"}\n')
    with pytest.raises(LabError, match="columns foo"):
        sft_data(SFTConfig(datasets=[f"{tmp_path}/a.jsonl"]), tokenizer)
    with pytest.raises(LabError, match="needed: preference rows"):
        dpo_data(DPOConfig(datasets=["llmlab:moby-dick"]), tokenizer)


def test_conversation_strings_and_pairs():
    text = "\n\nHuman: Who hunts?\n\nAssistant: Ahab.\n\nHuman: Whom?\n\nAssistant: "
    assert parse_conversation(text + "The whale.")[-1] == {"role": "assistant", "content": "The whale."}
    read = RowMapping("preference", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"})
    pair = read({"chosen": text + "The whale.", "rejected": text + "Nobody."})
    assert [m["role"] for m in pair["prompt"]] == ["user", "assistant", "user"]
    assert (pair["chosen"], pair["rejected"]) == ("The whale.", "Nobody.")
    for row, reason in (
        ({"chosen": text + "A", "rejected": text + "A"}, "equal"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "empty answer"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "share no prompt",
        ),
    ):
        with pytest.raises(InvalidRow, match=reason) as caught:
            read(row)
        assert not caught.value.malformed


def test_pairs_count_answers_alone(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"prompt": "Who?", "chosen": "Ahab", "rejected": "Stubb"}) + "\n"
    )
    row = dpo_data(DPOConfig(datasets=[f"{tmp_path}/a.jsonl"], eval_fraction=0), tokenizer).train[0]
    assert tokenizer.decode(row["prompt_ids"]) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["chosen_ids"]) == "Ahab<|im_end|>"


def test_tasks_are_right_and_split():
    solve = {
        "add": lambda q: sum(int(w.strip(".")) for w in q.split() if w.strip(".").isdigit()),
        "copy": lambda q: q.removeprefix("Copy: "),
        "reverse": lambda q: q.removeprefix("Reverse: ")[::-1],
        "count": lambda q: len(q.removeprefix("Count: ").split()),
        "last": lambda q: q[-1],
    }
    for task, question, answer in itertools.islice(questions(3, held_out=False), 400):
        assert not is_held_out(question)
        if task in solve:
            assert answer == str(solve[task](question))
    held = distinct_questions(400, seed=1)
    assert (
        len({q for _, q, _ in held}) == 400
        and all(is_held_out(q) for _, q, _ in held)
        and {t for t, _, _ in held} == set(TASKS)
    )

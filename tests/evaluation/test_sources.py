"""Figures of a model on sources: labels scored like whole sequences, metrics against their definitions,
losses packed or not.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from llmlab.config import SFTConfig, SourceConfig
from llmlab.data.conversations import sft_data
from llmlab.data.packing import PackedCollator
from llmlab.data.schemas import choice, user
from llmlab.data.sources import load_rows
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.evaluation.answers import answer
from llmlab.evaluation.classification import label_ids, label_prompt_ids, score_words
from llmlab.evaluation.figures import figures_of
from llmlab.evaluation.sources import measure
from llmlab.models.load import load_model
from llmlab.models.log_probs import answer_log_probs
from llmlab.training.engine.run import run


def test_metrics_are_their_definitions():
    words, right, given = ["a", "b", "c"], [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 3, 0]
    answers = [
        {"row": row, "reference": words[one], "answer": [*words, ""][other], "score": float(one == other)}
        | {"choices": words}
        for row, (one, other) in enumerate(zip(right, given, strict=True))
    ]
    found = figures_of("label", answers)
    assert found.confusion == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    values = {name: figure.value for name, figure in found.figures.items()}
    # a: precision 2/3, recall 2/3; b: precision 1/2, recall 1/2; c: never given
    macro_f1 = (2 / 3 + 1 / 2 + 0) / 3
    assert values == pytest.approx({"accuracy": 3 / 6, "majority": 3 / 6, "macro_f1": macro_f1})


@pytest.fixture(scope="module")
def model(base_run):
    made, tokenizer = load_model(str(base_run.folder))
    ensure_chat_template(tokenizer)
    return made.eval(), tokenizer


@pytest.mark.slow
def test_scores_are_those_of_whole_sequences(model, tmp_path):
    made, tokenizer = model
    words = ["ham", "spam and eggs", "neither"]
    rows = [
        choice(user(text), "ham", words)
        for text in ("Call me Ishmael.", "Who?", "The whale, the whale, the white whale!")
    ]
    prompts = [label_prompt_ids(tokenizer, row) for row in rows]
    scores = score_words(made, tokenizer, prompts, words)
    for column, word in enumerate(words):
        alone = answer_log_probs(made, prompts, [label_ids(tokenizer, word)] * 3, tokenizer.pad_token_id)
        torch.testing.assert_close(scores[:, column], alone, rtol=1e-4, atol=1e-4)
    asked = [{"prompt": row["prompt"][0]["content"], "completion": row["completion"]} for row in rows]
    source = mails(tmp_path / "rows.jsonl", 3) | {"labels": words}
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": row["prompt"], "label": 0}) + "\n" for row in asked)
    )
    found = measure(made, tokenizer, SourceConfig(**source, prompt="{text}"), batch_size=2)
    assert [words.index(one["answer"]) for one in found.answers] == scores.argmax(1).tolist()


def mails(path, count, start=0):
    rows = [
        {"text": f"{'win money now' if i % 2 else 'the whale at sea'} {i}", "label": i % 2}
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": str(path), "format": "classification", "labels": ["ham", "spam"]}


@pytest.mark.slow
def test_a_classifier_is_trained_and_measured_by_score_and_by_what_it_says(base_run, tmp_path):
    result = run(
        SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[mails(tmp_path / "train.jsonl", 200)],
            max_steps=160,
            learning_rate=5e-3,
            batch_size=4,
            gradient_accumulation_steps=1,
            max_length=64,
            eval_every=80,
            output_dir=str(tmp_path / "run"),
            report_to=[],
        )
    )
    made, tokenizer = load_model(str(result.folder))
    test = SourceConfig(**mails(tmp_path / "test.jsonl", 60, start=1000))
    for by in ("score", "generate"):
        found = measure(made, tokenizer, test, by=by)
        assert found.figures["accuracy"] > 0.9 > found.figures["majority"] and found.figures["macro_f1"] > 0.9


def test_text_and_pairs_are_measured_too(model, tmp_path):
    made, tokenizer = model
    text = measure(made, tokenizer, SourceConfig(name="llmlab:moby-dick", max_rows=5), max_length=64)
    assert 3 < text.figures["loss"] < 7 and text.figures["bits_per_byte"] > 1
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"prompt": "Who?", "chosen": "the whale", "rejected": "zqxj zqxj zqxj"}) + "\n"
    )
    pairs = measure(made, tokenizer, SourceConfig(name=str(tmp_path / "p.jsonl")))
    assert pairs.figures == {"preference_accuracy": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7])
@torch.no_grad()
def test_text_is_read_whole_in_windows_with_context(model, tmp_path, batch_size):
    """Against a plain computation: one forward pass per window, without batches, packing or padding."""
    made, tokenizer = model
    text = "\n\n".join(
        row["text"][:3000] for row in load_rows(SourceConfig(name="llmlab:moby-dick", max_rows=9))
    )
    (tmp_path / "whale.txt").write_text(text)
    ids = [*tokenizer(text.strip(), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert made.config.max_seq_len == 64 and len(text) > 20_000
    for limit, stride in ((1024, None), (48, 11)):
        window = min(limit, 64)
        step = stride or window // 2
        nats, predicted = 0.0, 1
        for start in range(0, len(ids), step):
            part = torch.tensor([ids[start : start + window]])
            losses = torch.nn.functional.cross_entropy(
                made(part).logits[0, :-1], part[0, 1:], reduction="none"
            )
            nats += losses[max(0, predicted - start - 1) :].double().sum().item()
            predicted = start + part.shape[1]
            if predicted == len(ids):
                break
        found = measure(
            made,
            tokenizer,
            SourceConfig(name=str(tmp_path / "whale.txt")),
            batch_size=batch_size,
            max_length=limit,
            stride=stride,
        )
        assert found.figures["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
        assert found.figures["bits_per_byte"] == pytest.approx(
            nats / np.log(2) / len(text.strip().encode()), rel=1e-5
        )
        assert found.reading == {"window": window, "stride": step, "tokens": len(ids), "share_read": 1.0}
    with pytest.raises(LabError, match="`stride` 64 is not between 1 and 63"):
        measure(made, tokenizer, SourceConfig(name=str(tmp_path / "whale.txt")), stride=64)


def test_answers_are_generated_where_that_is_asked_for(model, tmp_path):
    made, tokenizer = model
    rows = [
        {"prompt": "Who?", "completion": "Ahab"},
        {"prompt": "Where is the ship?", "completion": "At sea"},
    ]
    said = answer(made, tokenizer, [("", row["prompt"], "") for row in rows], max_new_tokens=12).rows
    rows[0]["completion"] = said[0][3] or "nothing"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measure(made, tokenizer, SourceConfig(name=str(tmp_path / "a.jsonl")), by="generate").figures
    longest = max(len(tokenizer(row["completion"])["input_ids"]) for row in rows) + 2
    said = answer(
        made, tokenizer, [("", row["prompt"], row["completion"]) for row in rows], max_new_tokens=longest
    )
    assert found == {"exact_match": said.accuracy}
    with pytest.raises(LabError, match="plain text have no reference answer"):
        measure(made, tokenizer, SourceConfig(name="llmlab:moby-dick", max_rows=2), by="generate")


@torch.no_grad()
def test_packed_and_unpacked_rows_have_the_same_loss_per_token_document_by_document(model, tmp_path):
    made, tokenizer = model
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab " * (i % 9 + 1)} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    packed = sft_data(
        SFTConfig(datasets=[str(tmp_path / "a.jsonl")], eval_fraction=0, max_length=256), tokenizer
    ).train
    collate = PackedCollator(tokenizer.pad_token_id)
    compared = 0
    for row in packed:
        batch = collate([row])
        together = token_losses(made, batch)
        starts = np.cumsum([0, *row["seq_lengths"]])
        for start, end in itertools.pairwise(starts):
            document = {name: row[name][start:end] for name in ("input_ids", "labels")}
            alone = token_losses(made, collate([document]))
            torch.testing.assert_close(together[start : end - 1], alone, rtol=0, atol=1e-5)
            compared += 1
    assert compared == 60


def token_losses(model, batch):
    labels = batch.pop("labels")[0, 1:]
    logits = model(**batch, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)


def test_encoders_are_refused_with_the_reason(tmp_path):
    BertForMaskedLM(
        BertConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    ).save_pretrained(tmp_path)
    load_tokenizer("byte").save_pretrained(tmp_path)
    with pytest.raises(LabError, match=r"is an encoder \(bert\): it cannot generate text"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "row, how, message",
    [
        (
            {"prompt": "Who?", "chosen": "Ahab", "rejected": "Pip"},
            {"max_length": 32},
            "`--max-length` applies to texts and conv",
        ),
        (
            {"prompt": "Who?", "completion": "Ahab"},
            {"stride": 8},
            "`--stride` applies to texts; these are conversations",
        ),
        (
            {"prompt": "Who?", "completion": "Ahab"},
            {"by": "generate", "max_length": 8},
            "these are prompts that are answered",
        ),
    ],
)
def test_lengths_are_refused_where_they_would_be_ignored(model, tmp_path, row, how, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(LabError, match=message):
        measure(*model, SourceConfig(name=str(tmp_path / "rows.jsonl")), **how)

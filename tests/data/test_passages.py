"""Questions on shipped passages: what is right follows from the passage; the parts do not overlap."""

import gzip
import json
import re
from importlib import resources

import pytest

from llmlab.config import SourceConfig
from llmlab.config.judges import ABSTENTION
from llmlab.data.passages import KINDS, is_test_chapter, shipped
from llmlab.data.pipeline import SourceRows
from llmlab.data.verdicts import VERDICTS

CORPUS = resources.files("llmlab.data") / "corpus"


def lines(split):
    text = gzip.decompress((CORPUS / f"passages.{split}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def parts():
    return {split: lines(split) for split in ("train", "test")}


def named(kind, text):
    return re.findall(rf"\b({'|'.join(KINDS[kind])})\b", text, re.IGNORECASE)


def test_every_label_follows_from_the_passage(parts):
    for row in [*parts["train"], *parts["test"]]:
        passage, kind, answer = row["passage"], row["kind"], row["answer"]
        words = named(kind, passage)
        if answer != ABSTENTION:
            assert words == [answer] and row["rejected"] in {*KINDS[kind], ABSTENTION} - {answer}
        else:
            assert row["rejected"] in KINDS[kind]
            assert not words or kind == "number"
        if kind == "number":  # counted is what is asked for, and nothing else is
            thing = re.fullmatch(r"How many (\w+)\?", row["question"])[1]
            assert (answer == ABSTENTION) == (thing not in passage)
            assert answer == ABSTENTION or f"{answer} {thing}" in passage
        word = "unsupported" if answer == ABSTENTION else "contradicted"
        worth = {answer: "supported", ABSTENTION: "abstained"}
        assert worth.get(row["claim"], word) == row["verdict"]


def test_no_chapter_and_no_passage_is_in_both_parts(parts):
    train, test = ({row["place"].split("-")[0] for row in parts[split]} for split in ("train", "test"))
    assert not train & test and all(map(is_test_chapter, test)) and not any(map(is_test_chapter, train))
    assert not {row["passage"] for row in parts["train"]} & {row["passage"] for row in parts["test"]}


def test_labels_are_balanced_enough_that_no_word_alone_is_a_good_answer(parts):
    for rows in parts.values():
        for kind in KINDS:
            of_kind = [row["answer"] for row in rows if row["kind"] == kind]
            assert of_kind.count(ABSTENTION) == len(of_kind) / 3
            assert max(of_kind.count(word) for word in KINDS[kind]) < 0.2 * len(of_kind)
        chosen, rejected = ([row[side] == ABSTENTION for row in rows] for side in ("answer", "rejected"))
        assert abs(sum(chosen) - sum(rejected)) < 0.1 * sum(chosen)
        verdicts = [row["verdict"] for row in rows]
        assert all(0.2 < verdicts.count(word) / len(rows) < 0.3 for word in VERDICTS)


@pytest.mark.slow
def test_what_ships_is_what_the_module_makes(parts):
    book = [json.loads(line) for line in (CORPUS / "moby-dick.jsonl").read_text("utf-8").splitlines()]
    for split, rows in parts.items():
        made = gzip.decompress(shipped(book, split)).decode()
        assert [json.loads(line) for line in made.splitlines()] == rows


def test_they_are_read_as_answers_pairs_and_verdicts(parts):
    row = parts["test"][0]
    read = {}
    for name in ("passages", "passage-pairs", "passage-claims"):
        source = SourceConfig(name=f"llmlab:{name}", split="test")
        read[name] = SourceRows.of(source, ("prompt_completion", "preference")).take(0, row)
    asked = f"{row['passage']}\n\n{row['question']}"
    assert read["passages"]["prompt"][0]["content"] == asked == read["passage-pairs"]["prompt"][0]["content"]
    assert read["passages"]["completion"] == row["answer"] == read["passage-pairs"]["chosen"]
    assert read["passage-pairs"]["rejected"] == row["rejected"]
    claim = read["passage-claims"]
    assert f"{asked}\n\nAnswer: {row['claim']}\n\n" in claim["prompt"][0]["content"]
    assert (claim["completion"], claim["choices"]) == (row["verdict"], list(VERDICTS))

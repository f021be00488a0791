"""Near duplicates, overlaps, cleaned copies: planted ones are found in shipped text, and nothing else."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from llmlab.config import SourceConfig
from llmlab.config.base import validate
from llmlab.data.cleaning import EVALUATED, FOREIGN, NEARLY, Cleaning, clean, overlap, report_path
from llmlab.data.counting import REPEATED
from llmlab.data.language import language_of
from llmlab.data.near_duplicates import near_duplicates, signature
from llmlab.data.sources import load_rows
from llmlab.data.words import phrase_hashes, word_hashes, words
from llmlab.errors import LabError
from tests.waiting import PATIENCE

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)
CLEAN = 250  # paragraphs


@pytest.fixture(scope="module")
def paragraphs():
    """Paragraphs of Moby-Dick of 40 words and more."""
    texts = load_rows(SourceConfig(name="llmlab:moby-dick"))["text"]
    return [part for text in texts for part in text.split("\n\n") if len(words(part)) >= 40][: CLEAN + 150]


def changed(text, share, generator, vocabulary):
    """Returns a text with a share of its words replaced by other words of the book."""
    parts = text.split()
    for place in generator.sample(range(len(parts)), round(share * len(parts))):
        parts[place] = generator.choice(vocabulary)
    return " ".join(parts)


def likeness(one, other):
    """Returns the Jaccard index of the word pairs, from the words themselves."""
    first, second = (set(zip(words(text), words(text)[1:], strict=False)) for text in (one, other))
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def planted(paragraphs):
    """Clean paragraphs and changed copies of some: texts, and (original, share) of each copy's place."""
    generator = random.Random(7)
    vocabulary = " ".join(paragraphs).split()
    texts, origins = list(paragraphs[:CLEAN]), {}
    for share in SHARES:
        for original in generator.sample(range(CLEAN), 20):
            origins[len(texts)] = (original, share)
            texts.append(changed(texts[original], share, generator, vocabulary))
    return texts, origins


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return SourceConfig(name=str(path))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def found_pairs(texts, near):
    signatures = np.stack([signature(word_hashes(text)) for text in texts])
    order = np.lexsort((np.arange(len(texts)), [-len(words(text)) for text in texts]))
    return {
        (place, one.kept): one.likeness for place, one in near_duplicates(signatures, order, near).items()
    }


@pytest.mark.slow
def test_planted_near_duplicates_are_found_and_nothing_else(planted):
    texts, origins = planted
    found = found_pairs(texts, 0.8)
    for (place, kept), estimate in found.items():
        exact = likeness(texts[place], texts[kept])
        assert abs(exact - estimate) < 0.125, "five standard errors of 256 minima"
    out = {place for pair in found for place in pair}
    rates = {share: [] for share in SHARES}
    for place, (original, share) in origins.items():
        rates[share].append(place in out and original in out)
        if likeness(texts[place], texts[original]) >= 0.9:
            assert place in out and original in out, "four standard errors above the threshold"
        if likeness(texts[place], texts[original]) < 0.7:
            assert (place, original) not in found and (original, place) not in found
    assert all(rates[0.0]) and sum(rates[0.05]) >= 12 and not any(rates[0.4] + rates[0.2])
    assert not found_pairs(texts[:CLEAN], 0.8)


def test_a_signature_is_that_of_datasketch_and_estimates_the_jaccard_index(paragraphs):
    from datasketch import MinHash

    text = paragraphs[0]
    pairs = phrase_hashes(word_hashes(text), 2)
    other = MinHash(256, hashfunc=lambda value: value & 0xFFFFFFFF)
    other.update_batch([int(pair) for pair in pairs])
    assert (other.hashvalues == signature(word_hashes(text))).all()


def test_words_of_scripts_without_spaces_are_characters():
    assert words("Don't STOP, été—２!") == ["don", "t", "stop", "été", "2"]
    assert words("鲸鱼abc です") == ["鲸", "鱼", "abc", "で", "す"]
    assert not len(word_hashes("?!")) and not len(phrase_hashes(word_hashes("a b"), 3))


@pytest.mark.slow
def test_the_copy_is_the_same_whatever_the_order_and_the_processes(planted, tmp_path):
    texts, _ = planted
    rows = [{"text": text, "id": f"r{place}", "more": {"a": [place]}} for place, text in enumerate(texts)]
    kept = []
    for order, processes in (("as is", 1), ("as is", 2), ("shuffled", 1)):
        mixed = rows if order == "as is" else random.Random(3).sample(rows, len(rows))
        source = write(tmp_path / f"{order}.jsonl", mixed)
        output = tmp_path / f"{order}-{processes}.out.jsonl"
        report = clean(source, output, Cleaning(processes=processes))
        kept.append(rows_of(output))
        assert report.kept == len(kept[-1]) and report.read == len(rows)
        assert all(row in rows for row in kept[-1]), "with their own columns as they are"
        assert set(report.left_out) == {NEARLY, REPEATED}
        for one in report.left_out.values():
            assert len(one.kept_rows) == len(one.rows) and not set(one.kept_rows) & set(
                report.left_out[NEARLY].rows
            )
        left_out = {number for one in report.left_out.values() for number in one.rows}
        assert [row["id"] for row in kept[-1]] == [
            row["id"] for number, row in enumerate(mixed, 1) if number not in left_out
        ]
    assert kept[0] == kept[1]
    assert sorted(row["text"] for row in kept[0]) == sorted(row["text"] for row in kept[2])
    reports = [json.loads((tmp_path / f"as is-{n}.out.report.json").read_text()) for n in (1, 2)]
    assert reports[0]["left_out"] == reports[1]["left_out"]


@pytest.fixture(scope="module")
def evaluation(paragraphs, tmp_path_factory):
    """A training set of paragraphs, and an evaluation set: clean rows, parts of training rows, short ones."""
    folder = tmp_path_factory.mktemp("overlap")
    generator = random.Random(5)
    train, fresh = paragraphs[:CLEAN], paragraphs[CLEAN:]
    vocabulary = " ".join(fresh).split()
    pieces, rows, expected = [], [], []
    for text in train[:20]:
        pieces.append(
            " ".join(text.split()[10:30]).upper().replace(",", " ;")
        )  # 20 words, other case and signs
    for number, piece in enumerate(pieces):
        rows.append(f"{' '.join(generator.choices(vocabulary, k=40))} {piece}" if number % 2 else piece)
        expected.append((True, number % 2 == 0))
    for text in train[20:30]:
        rows.append(" ".join(text.split()[5:17][:11]))  # of fewer than 13 words, anywhere
        expected.append((True, True))
    rows += ["Call me Ahab now", "the sea"]
    expected += [(True, True), (False, False)]
    rows += fresh
    expected += [(False, False)] * len(fresh)
    train_source = write(folder / "train.jsonl", [{"text": text} for text in [*train, "call me Ahab, now!"]])
    return train_source, write(folder / "eval.jsonl", [{"text": row} for row in rows]), expected


@pytest.mark.slow
def test_planted_overlaps_are_found_and_nothing_else(evaluation, tmp_path):
    train, test, expected = evaluation
    [found] = overlap([train], (test,))
    assert found.rows == len(expected)
    assert found.touched == sum(touched for touched, _ in expected)
    assert found.contained == sum(contained for _, contained in expected)
    first = found.examples[0]
    assert (first.row, first.training_row, first.share) == (1, 1, 1.0)
    report = clean(train, tmp_path / "out.jsonl", Cleaning(against=(test,)))
    left_out = [
        number for reason, one in report.left_out.items() for number in one.rows if reason == EVALUATED
    ]
    assert left_out == [*range(1, 31), CLEAN + 1]
    again = overlap([SourceConfig(name=str(tmp_path / "out.jsonl"))], (test,))
    assert again[0].touched == 0


def test_the_wording_of_a_task_is_no_overlap(tmp_path, paragraphs):
    wording = "Read what follows with care and say in one word whether it is of a whale or not"
    test = write(tmp_path / "eval.jsonl", [{"text": f"{wording}: {text}"} for text in paragraphs[:30]])
    train = write(tmp_path / "train.jsonl", [{"text": f"{wording}: {text}"} for text in paragraphs[30:60]])
    [found] = overlap([train], (test,))
    assert found.touched == 0 and found.ignored > 0
    mails = {"name": "llmlab:spam-mails", "split": "test", "max_rows": 50}
    [found] = overlap([SourceConfig(**mails)], (validate(SourceConfig, mails),))
    assert found.touched == found.rows > 0


@pytest.mark.slow
def test_languages_and_lengths(tmp_path):
    german = "Nennt mich Ismael. Vor einigen Jahren hatte ich wenig oder gar kein Geld im Beutel."
    english = "Call me Ishmael. Some years ago I had little or no money in my purse."
    assert [language_of(text) for text in (german, english, "捕鲸船在海上航行了很久", "42")] == [
        "de",
        "en",
        "zh",
        "unknown",
    ]
    rows = [{"text": text} for text in (german, english, "42 7", "the sea " * 200, english.upper())]
    report = clean(
        write(tmp_path / "in.jsonl", rows),
        tmp_path / "out.jsonl",
        Cleaning(languages=("en",), min_words=2, max_words=100),
    )
    assert {reason: one.rows for reason, one in report.left_out.items()} == {
        FOREIGN: [1],
        "more than 100 words": [4],
        NEARLY: report.left_out[NEARLY].rows,
    }
    assert report.left_out[NEARLY].rows in ([2], [5]) and {"text": "42 7"} in rows_of(tmp_path / "out.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_a_stream_gives_what_a_stored_source_gives(suffix, tmp_path, paragraphs):
    file = tmp_path / f"in.{suffix}"
    texts = [*paragraphs[:20], paragraphs[3]]
    if suffix == "txt":
        file.write_text("\n\n".join(texts * 10))
    elif suffix == "csv":
        file.write_text("text,n\n" + "".join(json.dumps(t.replace('"', "")) + ",1\n" for t in texts))
    else:
        file.write_text(
            "".join(
                json.dumps({"text": t, "n": 1} | ({"x": 2} if i else {})) + "\n" for i, t in enumerate(texts)
            )
        )
    for streaming in (False, True):
        report = clean(
            SourceConfig(name=str(file), streaming=streaming), tmp_path / f"{streaming}.jsonl", Cleaning()
        )
        assert suffix == "txt" or report.left_out[REPEATED].rows == [21]
    assert (tmp_path / "False.jsonl").read_bytes() == (tmp_path / "True.jsonl").read_bytes()
    kept = rows_of(tmp_path / "True.jsonl")
    if suffix == "jsonl":
        assert (tmp_path / "True.jsonl").read_text().splitlines() == file.read_text().splitlines()[:20]
    assert all(set(row) <= {"text", "n", "x"} for row in kept)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_nothing_is_half_written(kill, tmp_path, paragraphs):
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in paragraphs * 40])
    before = set(tmp_path.iterdir())
    command = [
        sys.executable,
        "-m",
        "llmlab",
        "data",
        "clean",
        source.name,
        "-o",
        str(tmp_path / "out.jsonl"),
    ]
    process = subprocess.Popen([*command, "--processes", "2", "--language", "en"], stderr=subprocess.PIPE)
    end = time.monotonic() + PATIENCE
    while set(tmp_path.iterdir()) == before and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(kill)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode
    assert kill == signal.SIGKILL or b"Traceback" not in err, "processes that lost the first one may say so"
    left = {path.name for path in set(tmp_path.iterdir()) - before}
    assert all(name.startswith(".") for name in left) if kill == signal.SIGKILL else not left
    small = write(tmp_path / "small.jsonl", [{"text": text} for text in paragraphs[:5]])
    clean(small, tmp_path / "out.jsonl", Cleaning())
    assert len(rows_of(tmp_path / "out.jsonl")) == 5
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {
        "small.jsonl",
        "out.jsonl",
        "out.report.json",
    }


def test_what_cannot_be_done_is_said(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "a b c"}])
    with pytest.raises(LabError, match=r"ends in \.jsonl"):
        clean(source, tmp_path / "out.csv", Cleaning())
    with pytest.raises(LabError, match="is read from"):
        clean(source, tmp_path / "in.jsonl", Cleaning())
    with pytest.raises(LabError, match="no row would stay"):
        clean(source, tmp_path / "out.jsonl", Cleaning(min_words=10))
    (tmp_path / "bad.jsonl").write_text('{"text": "a b c"}\n{"text": null}\n')
    bad = SourceConfig(name=str(tmp_path / "bad.jsonl"))
    with pytest.raises(LabError, match=r"bad\.jsonl.*row 2|line 2"):
        clean(bad, tmp_path / "out.jsonl", Cleaning())
    assert sorted(os.listdir(tmp_path)) == ["bad.jsonl", "in.jsonl"]
    report = clean(bad.model_copy(update={"bad_rows": "drop"}), tmp_path / "out.jsonl", Cleaning())
    assert report.kept == 1 and json.loads(report_path(tmp_path / "out.jsonl").read_text())["read"] == 2

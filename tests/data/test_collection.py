"""What was judged: a file that can be edited, and a source that each method reads its own rows from."""

import json

import pytest

from llmlab.cli import command_line
from llmlab.config import SourceConfig
from llmlab.data.collection import (
    BAD,
    BETTER,
    COLLECTED,
    EQUAL,
    GOOD,
    REWRITTEN,
    SOURCE,
    Collection,
    Mark,
    edited,
    exported,
)
from llmlab.data.pipeline import SourceRows
from llmlab.errors import LabError


def asked(text):
    return [{"role": "user", "content": text}]


MARKS = (
    Mark(BETTER, asked("a"), "short", "long winded", "m1", "m2", id="aaaa0001", when="2026-01-01T12:00Z"),
    Mark(EQUAL, asked("b"), "x", "y", "m1", "m2", id="aaaa0002"),
    Mark(GOOD, asked("c"), chosen="fine", chosen_model="m1", id="bbbb0003", note="yes"),
    Mark(BAD, asked("d"), rejected="awful", rejected_model="m2", id="bbbb0004"),
    Mark(REWRITTEN, asked("e"), "as it should be", "as it was", rejected_model="m2", id="cccc0005"),
)  # fmt: skip


@pytest.fixture
def collection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collection = Collection()
    collection.add(*MARKS)
    return collection


def rows(name, *needed):
    return [row for _, row in SourceRows.of(SourceConfig(name=name), needed)]


@pytest.mark.parametrize("name", [SOURCE, str(COLLECTED)])
def test_each_method_reads_its_own_rows(collection, name):
    pairs = [(row["chosen"], row["rejected"]) for row in rows(name, "preference")]
    assert pairs == [("short", "long winded"), ("as it should be", "as it was")]
    answers = [
        (row["prompt"][0]["content"], row["completion"])
        for row in rows(name, "messages", "prompt_completion")
    ]
    assert answers == [("c", "fine"), ("e", "as it should be")], "the better of two need not be good"


def test_what_is_exported_is_read_as_what_it_is(collection, tmp_path, capsys):
    for what in ("pairs", "answers", "labels"):
        command_line(["preferences", "export", "--as", what, "-o", f"{what}.jsonl"])
    assert "no method of llmlab learns from them yet" in capsys.readouterr().out
    assert [row["chosen"] for row in rows("pairs.jsonl", "preference")] == ["short", "as it should be"]
    assert [row["completion"] for row in rows("answers.jsonl", "messages", "prompt_completion")] == [
        "fine",
        "as it should be",
    ]
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [(row["completion"], row["label"]) for row in labels] == [
        ("fine", True),
        ("awful", False),
        ("as it should be", True),
        ("as it was", False),
    ]
    with pytest.raises(LabError, match="KTO rows"):
        rows("labels.jsonl", "messages", "prompt_completion")
    with pytest.raises(LabError, match="already exists"):
        command_line(["preferences", "export", "-o", "pairs.jsonl"])
    command_line(["preferences", "export", "-o", "pairs.jsonl", "--force", "--model", "m1", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 1


def test_a_mark_is_changed_and_deleted_in_its_place(collection):
    command_line(["preferences", "edit", "aaaa0001", "--verdict", "worse"])
    mark = collection.find("aaaa0001")
    assert (mark.chosen, mark.chosen_model, mark.rejected) == ("long winded", "m2", "short")
    command_line(["preferences", "edit", "bbbb0004", "--verdict", "good", "--note", "after all"])
    mark = collection.find("bbbb0004")
    assert (mark.verdict, mark.chosen, mark.chosen_model, mark.rejected) == (GOOD, "awful", "m2", "")
    command_line(["preferences", "edit", "last", "--text", "better still"])
    assert collection.marks()[-1].chosen == "better still"
    command_line(["preferences", "delete", "bbbb0003", "aaaa0002", "--yes"])
    assert [mark.id for mark in collection.marks()] == ["aaaa0001", "bbbb0004", "cccc0005"]
    assert len(exported(collection.marks(), "pairs")) == 2


@pytest.mark.parametrize(
    "line, expected",
    [
        ("show bbbb", "2 marks that begin 'bbbb'"),
        ("show dddd", "no mark 'dddd'"),
        ("edit cccc0005 --verdict good", "a mark `rewritten` can become no other verdict"),
        ("edit aaaa0001 --verdict good", "can become better, worse or equal"),
        ("edit aaaa0001 --verdict fine", "`fine` is no verdict"),
        ("edit cccc0005 --text=", "an empty text is no answer"),
        ("edit aaaa0001 --text", "requires an argument"),
        ("edit cccc0005", "what is to be changed"),
        ("delete cccc0005", "add --yes"),
        ("list --since yesterday", "is no day"),
        ("list --verdict fine", "is not one of better"),
        ("export -o x.jsonl --as csv", "is not one of pairs"),
        ("export -o x.jsonl --verdict good", "there are no pairs"),
        ("list --file none.jsonl", "nothing was collected yet"),
        ("list --file other.jsonl", "is no collection of preferences: row 1"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(collection, tmp_path, line, expected, capsys):
    (tmp_path / "other.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    before = collection.path.read_text()
    with pytest.raises(LabError, match=expected):
        command_line(["preferences", *line.split(" ")])
    assert collection.path.read_text() == before


def test_the_list_counts_by_model_and_says_what_can_be_trained(collection, capsys):
    command_line(["preferences"])
    shown = capsys.readouterr().out
    assert "2 pairs (DPO, reward models), 2 answers (SFT)" in shown and "4 labels" in shown
    command_line(["preferences", "list", "--json", "--since", "2026-06-01", "--model", "m2"])
    marks = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [mark["id"] for mark in marks] == ["aaaa0002", "bbbb0004", "cccc0005"]


def test_a_label_of_the_same_answer_replaces_the_one_before(collection):
    collection.add(Mark(BAD, asked("c"), rejected="fine", rejected_model="m1"))
    assert [mark.verdict for mark in collection.marks()] == [BETTER, EQUAL, BAD, REWRITTEN, BAD]


def test_nothing_collected_is_said_before_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="nothing was collected yet"):
        rows(SOURCE, "preference")


def test_an_edit_keeps_two_different_answers():
    with pytest.raises(LabError, match="both answers would be the same"):
        edited(MARKS[0], text="long winded")

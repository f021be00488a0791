"""A file of rows that grows: nothing that was written is lost, whatever ends the writing."""

import subprocess
import sys

import pytest

from llmlab.errors import LabError
from llmlab.journal import Journal

ROWS = [{"n": 0, "text": "hé\n"}, {"n": 1}, {"n": 2}]


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "inner" / "rows.jsonl")
    for row in ROWS:
        journal.append(row)
    return journal


def test_rows_are_read_as_they_were_written(journal, tmp_path):
    assert journal.rows() == ROWS
    assert Journal(tmp_path / "none").rows() == []


def test_wherever_the_last_line_is_cut_off_the_rows_before_stay_and_the_next_one_follows(journal):
    whole = journal.path.read_bytes()
    begins = whole.rindex(b"\n", 0, -1) + 1
    for end in range(begins, len(whole) - 1):
        journal.path.write_bytes(whole[:end])
        assert journal.rows() == ROWS[:2]
        journal.append({"n": 3})
        assert journal.rows() == [*ROWS[:2], {"n": 3}]
    journal.path.write_bytes(whole[:-1])  # written by hand, without a line end: it is a whole row
    journal.append({"n": 3})
    assert journal.rows() == [*ROWS, {"n": 3}]


def test_what_is_no_row_is_named(journal):
    journal.path.write_text('{"n": 0}\n[1]\n')
    with pytest.raises(LabError, match=r"rows.jsonl: line 2: is no JSON object"):
        journal.rows()


def test_two_writers_wait_for_each_other(journal):
    with journal.lock(), pytest.raises(LabError, match="another process is writing it"), journal.lock(0):
        pass
    with journal.lock(0):
        pass


def test_a_full_disk_leaves_whole_rows(journal):
    size = journal.path.stat().st_size
    program = (
        "import resource, sys; from pathlib import Path; from llmlab.journal import Journal\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "for number in range(3, 100): Journal(Path(sys.argv[1])).append({'n': number})"
    )
    ended = subprocess.run([sys.executable, "-c", program, journal.path], capture_output=True, text=True)
    assert "cannot be written" in ended.stderr and "the rows before are complete" in ended.stderr
    assert journal.path.read_bytes().endswith(b"\n")
    assert journal.rows() == [*ROWS, *({"n": number} for number in range(3, len(journal.rows())))]
    assert len(journal.rows()) > len(ROWS)

"""A full disk of one process: the others wait with it, and all begin again together."""

import errno
import threading

import pytest

from llmlab.errors import LabError
from llmlab.runs import disk
from llmlab.runs.disk import FullDisk


class Together:
    """The largest of the numbers that so many threads give, as processes exchange them."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.given = [0] * count

    def of(self, place):
        def worst(own):
            self.given[place] = own
            self.barrier.wait(30)
            largest = max(self.given)
            self.barrier.wait(30)
            return largest

        return worst


def written(failures, folder, monkeypatch):
    """Lets two processes write together; each fails with its errors, one after the other."""
    monkeypatch.setattr(disk, "LOOK_EVERY", 0.01)
    together, calls, ends, said = Together(2), [0, 0], [None, None], []

    def process(place):
        left = list(failures[place])

        def write():
            calls[place] += 1
            if left:
                raise left.pop(0)
            return f"written by {place}"

        try:
            ends[place] = FullDisk(said.append).retry(write, folder, worst=together.of(place))
        except Exception as error:
            ends[place] = error

    threads = [threading.Thread(target=process, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return calls, ends, said


def test_all_begin_again_where_one_found_no_room(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    calls, ends, said = written(([], [full, full]), tmp_path, monkeypatch)
    assert calls == [3, 3] and ends == ["written by 0", "written by 1"]
    assert len(said) == 2 and "the disk is full" in said[0]


def test_where_one_fails_otherwise_all_end(tmp_path, monkeypatch):
    calls, ends, _ = written(([], [ValueError("seven")]), tmp_path, monkeypatch)
    assert calls == [1, 1] and isinstance(ends[1], ValueError)
    with pytest.raises(LabError, match="another process of the job could not write"):
        raise ends[0]

"""What the program does about the libraries it imports."""

import gc
import sys

from llmlab.libraries import importing


def test_the_collector_rests_while_libraries_are_imported_and_leaves_them_alone(tmp_path, monkeypatch):
    (tmp_path / "a_library_of_the_test.py").write_text("KEPT = [[] for _ in range(5000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    gc.collect()  # frozen objects of tests before may go meanwhile
    frozen = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        import a_library_of_the_test
    assert gc.isenabled() and gc.get_freeze_count() > frozen + 4000
    monkeypatch.delitem(sys.modules, a_library_of_the_test.__name__)


def test_what_is_imported_already_freezes_nothing():
    frozen = gc.get_freeze_count()
    with importing():
        from llmlab import errors
    assert gc.isenabled() and gc.get_freeze_count() <= frozen and errors

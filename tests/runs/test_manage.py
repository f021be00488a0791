"""Runs that are renamed, deleted, tagged and repeated: what came from them stays true."""

import json
from pathlib import Path

import pytest

from llmlab.errors import LabError
from llmlab.runs.again import again_as
from llmlab.runs.details import find_run, run_details
from llmlab.runs.folder import RunFolder
from llmlab.runs.lineage import lineage
from llmlab.runs.lock import run_lock
from llmlab.runs.manage import delete_run, deletion, rename_run
from llmlab.runs.tags import tag, tags_of, untag
from tests.runs.made import make_run, write_model


@pytest.fixture
def family(tmp_path, monkeypatch):
    """checkpoints/base, from which child came, from which grandchild came."""
    monkeypatch.chdir(tmp_path)
    runs = Path("checkpoints")
    make_run(runs / "base", parent="EleutherAI/pythia-14m", name="base")
    make_run(runs / "child", seed=2, name="base")  # an option of another kind that is spelt like the run
    make_run(runs / "grandchild", seed=3, parent="checkpoints/child/best")
    for name in ("base", "child", "grandchild"):
        write_model(runs / name / "best")
    return runs


def test_a_renamed_run_keeps_its_children(family):
    new, changed = rename_run(find_run("base"), "first")
    assert (
        new == family / "first" and changed == [Path("checkpoints/child")] and not (family / "base").exists()
    )
    child = RunFolder(family / "child").record
    assert child["parent"] == child["config"]["policy_checkpoint"] == "checkpoints/first/best"
    assert child["config"]["name"] == "base"
    assert lineage(family / "grandchild") == [
        "checkpoints/grandchild",
        "checkpoints/child",
        "checkpoints/first",
        "EleutherAI/pythia-14m",
    ]
    own = RunFolder(new).record["config"]
    assert own["output_dir"] == "checkpoints/first" and own["name"] == "first"


def test_a_run_that_an_adapter_stands_on_is_neither_renamed_nor_deleted(family):
    base = (family / "base" / "best").resolve()
    write_model(family / "adapter" / "best", base_model_name_or_path=str(base))
    (family / "adapter" / "run.json").write_text(json.dumps({"status": "done", "config": {"kind": "sft"}}))
    before = RunFolder(family / "child").record
    for act in (lambda: rename_run(find_run("base"), "first"), lambda: delete_run(find_run("base"))):
        with pytest.raises(LabError, match="checkpoints/adapter/best is an adapter of its weights"):
            act()
    assert (family / "base").is_dir() and RunFolder(family / "child").record == before


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "child", "no/such/folder", "a\0b"])
def test_a_name_that_cannot_be_used_changes_nothing(family, name):
    with pytest.raises(LabError):
        rename_run(find_run("base"), name)
    assert (family / "base" / "run.json").is_file()


def test_a_run_at_work_stays(family):
    with run_lock(family / "child"):
        with pytest.raises(LabError, match="training in"):
            delete_run(find_run("child"))
        with pytest.raises(LabError, match="training in"):
            rename_run(find_run("child"), "other")
        with pytest.raises(LabError, match="training in"):  # its record would be written under it
            rename_run(find_run("base"), "other")
    assert (family / "child").is_dir() and (family / "base").is_dir()


def test_what_an_unfinished_run_reads_is_not_deleted(family):
    RunFolder(family / "child").update(status="stopped")
    with pytest.raises(LabError, match="checkpoints/child is not finished and reads it"):
        deletion(find_run("base"))
    RunFolder(family / "child").update(status="done")
    planned = deletion(find_run("base"))
    size = sum(file.stat().st_size for file in (family / "base").rglob("*") if file.is_file())
    assert planned.size == size and planned.orphans == (Path("checkpoints/child"),)
    delete_run(find_run("base"))
    assert sorted(path.name for path in family.iterdir()) == ["child", "grandchild"]
    assert run_details(find_run("child")).lineage[0].name == "checkpoints/base"


def test_tags_are_the_runs_own(family):
    run = family / "base"
    assert tag(run, "best", "lr-2e-5") == tag(run, "best") == ("best", "lr-2e-5")
    assert untag(run, "best") == tags_of(run) == ("lr-2e-5",)
    RunFolder(run).update(status="running")
    assert tags_of(run) == ("lr-2e-5",)
    for wrong in ("two words", "", "x" * 51, "\x1b[31m"):
        with pytest.raises(LabError, match="is no tag"):
            tag(run, wrong)
    with pytest.raises(LabError, match="has no tag 'best'"):
        untag(run, "best")
    (run / "tags.json").write_text('{"tags": [1, "good", "[bold]"]}')
    assert tags_of(run) == ("good",)


def test_a_run_is_repeated_under_a_name_of_its_own(family):
    assert again_as("base", {"seed": 2}) == (family / "base", family / "base-2")
    (family / "base-2").mkdir()
    assert again_as("base", {})[1] == family / "base-3" and again_as("base", {}, "x")[1] == family / "x"
    for changes, name, message in (
        ({}, "child", "already exists"),
        ({"lerning_rate": 1}, "", "did you mean `learning_rate`"),
        ({"output_dir": "x"}, "", "--name"),
    ):
        with pytest.raises(LabError, match=message):
            again_as("base", changes, name)


def test_a_run_in_a_folder_of_its_own_is_found_by_its_last_name_where_no_other_has_it(family):
    make_run(family / "tries" / "alone")
    assert find_run("alone").path == family / "tries" / "alone" == find_run("tries/alone").path
    make_run(family / "more" / "alone")
    with pytest.raises(LabError, match=r"several runs.*more/alone.*tries/alone|several runs.*tries/alone"):
        find_run("alone")

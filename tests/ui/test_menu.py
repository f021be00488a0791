"""The menu's screens of what is saved, driven by keys."""

import io
import json
import shutil

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from llmlab.config import SFTConfig, load_config, preset, save_config
from llmlab.runs.folder import RUNS, all_runs
from llmlab.runs.index import run_rows
from llmlab.ui import commands, config_files, drafts, menu, pickers, saved, train
from tests.runs.made import make_run

ENTER, DOWN, CTRL_C, ESCAPE, CLEAR = "\r", "\x1b[B", "\x03", "\x1b[Z", "\x15"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder, what is started from the menu, and a way to press keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CONFIG", str(tmp_path / "settings"))
    started = []
    monkeypatch.setattr(commands, "llmlab", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(saved, "has_cluster", lambda: False)  # whatever this machine is part of

    def press(act, keys):
        console = Console(record=True, width=120, file=io.StringIO())
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_text(keys)
            made = act(console)
        return made, " ".join(console.export_text().split())

    return tmp_path, press, started


def test_a_name_that_is_taken_is_not_replaced_without_a_word(desk):
    folder, press, _ = desk
    save_config(preset("tiny"), folder / "model_configs" / "tiny.json")
    keys = ENTER + "n" + ENTER  # offered again as tiny-2
    made, shown = press(lambda console: config_files.save_as(preset("small"), "tiny", console), keys)
    assert made.name == "tiny-2.json" and load_config(made) == preset("small") and "saved as" in shown
    assert load_config(folder / "model_configs" / "tiny.json") == preset("tiny")


@pytest.mark.parametrize("key", [CTRL_C, ESCAPE])
def test_a_config_that_is_not_saved_is_kept_as_a_draft(desk, key):
    _, press, _ = desk
    made, shown = press(
        lambda console: config_files.save_as(SFTConfig(learning_rate=0.25), "sft", console), key
    )
    assert made is None and "draft saved as" in shown and drafts.kept(SFTConfig)["learning_rate"] == 0.25


def test_configs_are_copied_compared_and_deleted(desk):
    folder, press, _ = desk
    for name, rate in (("a", 0.25), ("b", 0.5)):
        save_config(SFTConfig(learning_rate=rate), folder / "model_configs" / f"{name}.json")
    press(saved.saved, ENTER + DOWN * 3 + ENTER * 2)  # the first, duplicate, under the name that is offered
    assert load_config(folder / "model_configs" / "a-2.json") == SFTConfig(learning_rate=0.25)
    _, shown = press(
        lambda console: saved.with_config(config_files.CONFIGS / "a.json", console),
        DOWN * 4 + ENTER + DOWN + ENTER,
    )
    assert "learning_rate │ 0.25 │ 0.5" in shown
    press(
        lambda console: saved.with_config(config_files.CONFIGS / "a-2.json", console), DOWN * 5 + ENTER + "y"
    )
    assert not (folder / "model_configs" / "a-2.json").exists()


def test_where_there_is_a_queue_a_config_becomes_a_job(desk, monkeypatch):
    folder, press, started = desk
    monkeypatch.setattr(saved, "has_cluster", lambda: True)
    save_config(SFTConfig(), folder / "model_configs" / "a.json")
    press(lambda console: saved.with_config(config_files.CONFIGS / "a.json", console), DOWN * 2 + ENTER)
    assert started == [("slurm", "model_configs/a.json", "-o", "model_configs/a.sh")]


def test_a_config_that_no_longer_validates_says_why_and_can_be_deleted(desk):
    folder, press, _ = desk
    (folder / "model_configs").mkdir()
    (folder / "model_configs" / "old.json").write_text('{"kind": "sft", "learning_rate": "[fast]"}')
    _, shown = press(saved.saved, ENTER + ENTER + "n")
    assert "'[fast]'" in shown and (folder / "model_configs" / "old.json").exists()


def test_a_stopped_run_goes_on_and_a_finished_one_is_talked_to(desk):
    folder, press, started = desk
    for name, status, kind in (("a", "stopped", "dpo"), ("b", "done", "dpo"), ("c", "done", "reward")):
        run = folder / "checkpoints" / name
        (run / "final").mkdir(parents=True)
        (run / "run.json").write_text(
            json.dumps({"status": status, "config": {"kind": kind}, "result": "final", "started": name})
        )
        if status == "done":
            (run / "final" / "config.json").write_text("{}")
    runs = {run.path.name: run for run in all_runs()}
    for name, keys in (
        ("a", ENTER),
        ("b", ENTER),
        ("b", DOWN * 2 + ENTER),
        ("b", DOWN * 3 + ENTER),
        ("c", DOWN * 2 + ENTER),
        ("c", DOWN * 3 + ENTER + ESCAPE),  # what is shown stays above the question
    ):
        press(lambda console, name=name: saved.with_run(runs[name], console), keys)
    assert started == [
        ("run", "checkpoints/a"),
        ("chat", "checkpoints/b"),
        ("serve", "checkpoints/b"),
        ("info", "checkpoints/b"),
        ("runs", "verify", "checkpoints/c"),
        ("runs", "show", "checkpoints/c"),
    ]


@pytest.fixture
def brought(tmp_path, base_run):
    """A model that the lab did not make as a run here, in a folder with a blank in its name."""
    shutil.copytree(base_run.model, tmp_path / "my model")
    return str(tmp_path / "my model")


@pytest.mark.slow
def test_who_brings_a_model_finds_every_entry_open(desk, brought, monkeypatch):
    _, press, started = desk
    asked = []
    monkeypatch.setattr("llmlab.ui.forms.fill_in", lambda config, console, **_: asked.append(config))
    another = ENTER + f" '{brought}' " + ENTER  # as it is dragged into a terminal
    for key, kind in (("3", "sft"), ("4", "reward"), ("5", "dpo"), ("8", "dual_head")):
        press(lambda _: menu.main_menu(), f"{key}{ENTER}{another}{ENTER}0{ENTER}")
        assert asked[-1].kind == kind and getattr(asked[-1], asked[-1].STARTS_FROM) == brought
        another = ENTER  # it is remembered, and offered first
    # base training of it: not from scratch
    press(lambda _: menu.main_menu(), f"2{ENTER}{DOWN}{ENTER}{another}0{ENTER}")
    assert asked[-1].kind == "pretrain" and asked[-1].init_from == brought and asked[-1].model is None
    for key in "67":  # and a rule that rewards
        press(lambda _: menu.main_menu(), f"{key}{ENTER}{another}{ENTER}{ENTER}0{ENTER}")
        assert asked[-1].policy_checkpoint == brought and asked[-1].reward_model[0].name == "exact_match"
    press(lambda _: menu.main_menu(), f"9{ENTER}{ENTER}{another}0{ENTER}")
    assert started == [("chat", brought)]


def test_a_model_that_is_typed_is_checked_at_once(desk, brought):
    folder, press, _ = desk
    (folder / "empty").mkdir()
    keys = "banana" + ENTER + CLEAR + "empty" + ENTER + CLEAR + "./none" + ENTER + CLEAR + brought + ENTER
    made, shown = press(lambda console: pickers.type_model("sft", console), keys)
    assert made == brought
    assert (
        "banana: there is no such model" in shown
        and "empty: is not a checkpoint" in shown
        and "./none: there is no such" in shown
    )
    made, shown = press(lambda console: pickers.type_model("sft", console), "some/model" + ENTER)
    assert made == "some/model" and "not checked (offline)" in shown


@pytest.mark.slow
def test_a_model_is_exported_and_published_from_the_menu(desk, brought):
    _, press, started = desk
    another = ENTER + brought + ENTER  # the first time; then it is remembered, and offered first
    for keys in (
        ENTER,  # a folder
        DOWN + ENTER + DOWN * 4 + ENTER,  # a GGUF file, Q8_0
        DOWN * 3 + ENTER + "banana" + ENTER + CLEAR + "someone/it" + ENTER + "y",  # the hub
        DOWN * 4 + ENTER,  # the card
    ):
        press(lambda _: menu.main_menu(), f"x{ENTER}{another}{keys}0{ENTER}")
        another = ENTER
    press(lambda _: menu.main_menu(), f"x{ENTER}{another}{DOWN * 5}{ENTER}0{ENTER}")
    assert started == [
        ("export", brought, "--to", "hf"),
        ("export", brought, "--to", "gguf", "--quantize", "Q8_0"),
        ("push", brought, "someone/it", "--private"),
        ("card", brought),
        ("serve", brought),
    ]


@pytest.mark.slow
def test_a_number_opens_its_own_entry_and_no_other(desk, monkeypatch):
    _, press, _ = desk
    for name in (
        "configure_model",
        "train",
        "test_model",
        "saved",
        "look_at_data",
        "compare_methods",
        "verify_machine",
        "evaluate_models",
        "export_or_publish",
    ):
        monkeypatch.setattr(menu, name, lambda *arguments, name=name: opened.append((name, arguments[0])))
    for key, expected in {
        "1": "configure_model",
        "9": "test_model",
        "x": "export_or_publish",
        "t": "evaluate_models",
        "s": "saved",
        "d": "look_at_data",
        "m": "compare_methods",
        "v": "verify_machine",
    }.items():
        opened = []
        press(lambda _: menu.main_menu(), f"{key}{ENTER}0{ENTER}")
        assert [name for name, _ in opened] == [expected]
    for key, kind in zip(
        "2345678", ("pretrain", "sft", "reward", "dpo", "grpo", "ppo", "dual_head"), strict=True
    ):
        opened = []
        press(lambda _: menu.main_menu(), f"{key}{ENTER}0{ENTER}")
        assert opened == [("train", kind)]


def test_a_reward_model_judges_and_is_not_trained(desk, monkeypatch, brought):
    folder, press, _ = desk
    run = folder / "checkpoints" / "judge"
    shutil.copytree(brought, run / "final")
    about = json.loads((run / "final" / "config.json").read_text())
    (run / "final" / "config.json").write_text(
        json.dumps({**about, "architectures": ["LlamaForSequenceClassification"]})
    )
    record = {"status": "running", "config": {"kind": "reward"}, "result": "final", "started": "1"}
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(
        commands, "llmlab", lambda *_: (run / "run.json").write_text(json.dumps({**record, "status": "done"}))
    )
    asked = []
    monkeypatch.setattr("llmlab.ui.forms.fill_in", lambda config, console, **_: asked.append(config))
    keys = ENTER + ENTER + brought + ENTER + ENTER  # the next step, another model, its name, the defaults
    press(lambda console: train.run_and_go_on(run, "reward", console), keys)
    assert (asked[0].kind, asked[0].policy_checkpoint, asked[0].reward_model[0].name) == (
        "grpo",
        brought,
        "checkpoints/judge",
    )


def made_run(folder, name, kind, started, parent="", **record):
    run = folder / "checkpoints" / name
    (run / "final").mkdir(parents=True)
    (run / "final" / "config.json").write_text("{}")
    record = {"status": "done", "config": {"kind": kind}, "result": "final", "parent": parent, **record}
    (run / "run.json").write_text(json.dumps({**record, "started": started}))


def test_runs_stand_below_what_they_came_from(desk):
    folder, _, _ = desk
    made_run(folder, "base", "pretrain", "2026-01-01T10:00:00+00:00", parameters=12_600_000)
    for name in ("b", "a"):
        made_run(folder, name, "sft", f"2026-01-02T10:0{name == 'a':d}:00+00:00", "checkpoints/base/final")
    made_run(folder, "own", "sft", "2026-01-03T10:00:00+00:00", "org/model", metrics={"eval_loss": 1.25})
    lines = [line.label for line in pickers.by_lineage(run_rows(RUNS))]
    assert [line.split("  ")[0] for line in lines] == [
        "── from org/model",
        "checkpoints/own",
        "── from checkpoints/base",
        "checkpoints/a",
        "checkpoints/b",
        "checkpoints/base",
    ]
    assert "sft" in lines[1] and "03 Jan" in lines[1] and "loss 1.25" in lines[1] and "12.6M" in lines[5]


def test_a_model_that_was_brought_is_offered_again(desk, tmp_path, monkeypatch):
    _, press, _ = desk
    monkeypatch.setattr(pickers, "check_model", lambda name, use: tmp_path)
    pick = lambda console: pickers.pick_model("Which?", "sft", console)  # noqa: E731
    assert press(pick, ENTER + "some/model" + ENTER)[0] == "some/model"
    assert press(pick, ENTER)[0] == "some/model"


@pytest.mark.parametrize(
    "keys, arguments",
    [
        (ENTER * 2 + "y", ()),
        (
            DOWN + ENTER + CLEAR + "60" + ENTER + "n",
            ("--resume", "{}/checkpoint-10", "--set", "max_steps=60", "--fresh-optimizer"),
        ),
    ],
)
def test_resuming_asks_from_where_how_far_and_with_which_optimizer(desk, monkeypatch, keys, arguments):
    folder, press, started = desk
    made_run(folder, "a", "sft", "a", status="stopped", config={"kind": "sft", "max_steps": 40})
    run = next(iter(all_runs()))
    steps = [type("Checkpoint", (), {"step": step})() for step in (10, 20)]
    monkeypatch.setattr(type(run), "checkpoints", lambda self: steps)
    press(lambda console: saved.resume(run, "sft", console), keys)
    assert started == [("run", str(run.path), *(part.format(run.path) for part in arguments))]


def test_a_result_stays_above_one_line_until_the_menu_is_wanted(desk, monkeypatch, capsys):
    _, press, _ = desk
    menus = []
    monkeypatch.setattr(menu, "status", lambda width: menus.append("shown") or "")
    press(lambda _: menu.main_menu(), f"m{ENTER}m{ENTER}{ENTER}0{ENTER}")
    assert len(menus) == 2 and capsys.readouterr().out.count("Base training  pretrain") == 2


def test_the_cursor_stands_on_what_comes_next(desk):
    folder, _, _ = desk
    assert menu.natural_next() == menu.GUIDED
    save_config(preset("tiny"), folder / "model_configs" / "tiny.json")
    assert "train" in menu.natural_next().lower()
    made_run(folder, "base", "pretrain", "2026-01-01T10:00:00+00:00")
    assert "fine-tun" in menu.natural_next().lower()


def test_the_menus_first_line_fits_however_long_the_name_of_the_last_run_is(desk):
    folder, _, _ = desk
    for name in ("short", "a-run-with-a-name-that-is-" + "much-" * 10 + "longer"):
        make_run(folder / "checkpoints" / name, seed=len(name))
        line = menu.status(72)
        assert len(line) <= 72 and line.endswith(f"{name[-8:]} (done)" if len(name) > 9 else "short (done)")

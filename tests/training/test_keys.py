"""Keys during a run: validate now, pause, stop; each at the end of an update, a stop like any other."""

import threading
import time

import pytest

from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.keys import Keys
from llmlab.training.engine import progress
from llmlab.training.engine.run import run
from tests.waiting import PATIENCE, until


def with_presses(monkeypatch, presses):
    made = []

    class Pressed(Keys):
        @staticmethod
        def there():
            return True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def on_train_begin(self, args, state, control, **kwargs):
            made.append(self)

        def on_step_begin(self, args, state, control, **kwargs):
            for key in presses.pop(state.global_step, ""):
                self.press(key)

    monkeypatch.setattr(progress, "Keys", Pressed)
    return made


@pytest.mark.slow
def test_e_validates_now_and_s_stops_sealed(base_config, tmp_path, monkeypatch):
    with_presses(monkeypatch, {3: "e", 6: "s"})
    result = run(base_config(tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    assert [line["step"] for line in folder.metrics() if "eval_loss" in line] == [0, 4]
    assert result.stopped_by and folder.record["status"] == "stopped"
    assert folder.checkpoints()[0].name == "checkpoint-7" and folder.checkpoints()[0].fault() == ""
    assert not run(base_config(tmp_path / "run")).stopped_by


@pytest.mark.slow
def test_p_saves_and_waits(base_config, tmp_path, monkeypatch):
    made = with_presses(monkeypatch, {2: "p"})
    folder = RunFolder(tmp_path / "run")

    def later():
        until(folder.checkpoints)
        time.sleep(0.5)
        assert [path.name for path in folder.checkpoints()] == ["checkpoint-3"]
        made[0].press("p")

    waiting = threading.Thread(target=later)
    waiting.start()
    result = run(base_config(tmp_path / "run"))
    waiting.join(PATIENCE)
    assert not result.stopped_by

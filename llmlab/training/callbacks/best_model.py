"""The weights with the best figure, held-out or of a suite, in `best/`."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.runs.figures import better_of
from llmlab.runs.folder import RunFolder, read_json
from llmlab.runs.manifest import MANIFEST
from llmlab.training.engine.distributed import broadcast_from_main


class BestModel(TrainerCallback):
    """Keeps the weights with the best held-out figure in `best/`, replaced only by a whole new folder.

    Args:
        folder: of the run; the figure of a model that is in it already has to be beaten.
        figure: that decides; which of its values are better follows from its name.
        save: saves the trainer's model as a name in the run's folder, with facts for its manifest.
        anew: whether the figure of a model that is there counts for nothing: it was another one.
    """

    def __init__(self, folder: RunFolder, figure: str, save: Callable[..., None], *, anew: bool = False):
        self.folder, self.figure, self.save = folder, figure, save
        self.sign = -1.0 if better_of(figure) == "lower" else 1.0
        # the first process alone changes the folder: the others must not read it before it is done
        value = broadcast_from_main(lambda: read_json(folder.path / "best" / MANIFEST).get(figure))
        self.best = self.sign * value if isinstance(value, (int, float)) and not anew else float("-inf")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Saves when the held-out figure is the best so far; the untrained model is never the best."""
        value = (metrics or {}).get(self.figure, float("nan"))
        if state.global_step == 0 or not self.sign * value > self.best:
            return
        self.best = self.sign * value
        self.save("best", step=state.global_step, **{self.figure: value})

"""What Tab completes in a line: runs, models and datasets that are known here, and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from llmlab.config import LabBaseConfig
from llmlab.config.rewards import FUNCTIONS, RewardSource
from llmlab.config.sources import SourceConfig
from llmlab.config.suites import SUITES, suite_files
from llmlab.config.training import NEWEST
from llmlab.models.hub import downloaded
from llmlab.runs.folder import RUNS
from llmlab.runs.index import run_rows

PATHS = ("output_dir", "deepspeed_config", "path", "file", "gate")
MODELS = (
    "init_from",
    "policy_checkpoint",
    "tokenizer",
    "tokenizer_name",
    "checkpoint",
    "model",
    "against",
    "judge",
)


class Names(Completer):
    """Completes a name of a list, or a path.

    Args:
        names: returns the names that are known; asked when Tab is pressed.
    """

    def __init__(self, names: Callable[[], Iterable[str]] = tuple):
        self.names, self.paths = names, PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yields what the text before the cursor may become."""
        typed = document.text_before_cursor
        for name in self.names():
            if name.startswith(typed):
                yield Completion(name, -len(typed))
        yield from self.paths.get_completions(document, complete_event)


def completer_of(cls: type[LabBaseConfig], name: str = "") -> Completer | None:
    """Returns what completes an option of a config class, or a line of a list of such configs; None for
    nothing.
    """
    if cls is SourceConfig:
        return Names(dataset_names)
    if cls is RewardSource:
        return Names(lambda: [*FUNCTIONS, *run_names()])
    if name == "model" and getattr(cls, "KIND", "") == "pretrain":
        return Names()
    if name == "suite":
        return Names(lambda: [*SUITES, *suite_files()])
    if name == "evaluation_suite":
        return Names(lambda: [*SUITES, *suite_files(), *dataset_names()])
    if name in MODELS or name == getattr(cls, "STARTS_FROM", ""):
        return Names(model_names)
    return Names() if name in PATHS else None


def run_names() -> list[str]:
    """Returns the runs whose model can be used, newest first."""
    return [str(row.path) for row in run_rows(RUNS) if row.result]


def model_names() -> list[str]:
    """Returns the runs, and the models of the hub that were downloaded."""
    return [NEWEST, *run_names(), *downloaded("model")]


def dataset_names() -> list[str]:
    """Returns the datasets of the catalogue, and those of the hub that were downloaded."""
    from llmlab.data.catalogue import CATALOGUE

    return [*dict.fromkeys([*(entry.id for entry in CATALOGUE), *downloaded("dataset")])]

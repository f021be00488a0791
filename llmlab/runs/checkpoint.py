"""One checkpoint of a run: its folder and its step, which nothing else reads out of a folder name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llmlab.runs.manifest import verify

PREFIX = "checkpoint-"


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A `checkpoint-N` folder; checkpoints compare by their step.

    Attributes:
        step: optimizer updates that it comes after.
        path: of the folder.
    """

    step: int
    path: Path = field(compare=False)

    @classmethod
    def at(cls, path: Path) -> Checkpoint | None:
        """Returns the checkpoint that a path names, None where its name is not that of a checkpoint."""
        number = path.name.removeprefix(PREFIX)
        if not path.name.startswith(PREFIX) or not (number.isascii() and number.isdigit()):
            return None
        return cls(int(number), path)

    @classmethod
    def of(cls, run: Path, step: int) -> Checkpoint:
        """Returns the checkpoint that a run keeps after a step, whether it is there or not."""
        return cls(step, run / f"{PREFIX}{step}")

    @classmethod
    def all_in(cls, run: Path) -> list[Checkpoint]:
        """Returns the checkpoint folders of a run, newest first; their manifests are not looked at."""
        checkpoints = (cls.at(path) for path in run.glob(f"{PREFIX}*") if path.is_dir())
        return sorted((checkpoint for checkpoint in checkpoints if checkpoint), reverse=True)

    @property
    def name(self) -> str:
        """Name of the folder, `checkpoint-500`."""
        return self.path.name

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.path.parent

    def fault(self) -> str:
        """Returns "" where the manifest verifies, else what is wrong."""
        return verify(self.path)

    def __str__(self) -> str:
        return str(self.path)

"""Checkpoints that are complete or not there: written aside, manifest last, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.launching.rank_files import RankFiles
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.disk import FullDisk
from llmlab.runs.folder import RUN_CONFIG, RunFolder
from llmlab.runs.manifest import sync_folder, write_manifest
from llmlab.training.engine.distributed import worst_of_all

ASIDE = ".saving"
LEFT_OUT = ("training_args.bin", "README.md")  # a pickle, and a card that says nothing of this run


@dataclass(frozen=True)
class CheckpointWriter:
    """Writes the checkpoints of a run.

    Attributes:
        run: folder of the run.
        keep: how many checkpoints stay.
        run_config: options of the run and what it reads, kept in every checkpoint.
        disk: waits for room on a full one.
    """

    run: RunFolder
    keep: int
    run_config: dict[str, Any]
    disk: FullDisk

    @property
    def aside(self) -> Path:
        """The folder in which a checkpoint is written before it is renamed."""
        return self.run.path / ASIDE

    def write(
        self,
        step: int,
        save: Callable[[Path], None],
        *,
        main: bool,
        barrier: Callable[[], None],
        expected_bytes: int,
    ) -> None:
        """Writes the checkpoint of a step; every process has to call this.

        Args:
            step: optimizer updates that it comes after.
            save: writes everything but the manifest below the folder `aside`, into the folder that it is
                given; called again when the disk was full. Where one process fails to write, it must still
                take part in what all processes do together.
            main: whether this process writes the manifest.
            barrier: waits for all processes.
            expected_bytes: that must be free, where no earlier checkpoint tells.
        """
        target = Checkpoint.of(self.run.path, step)

        def attempt() -> None:
            if main:
                shutil.rmtree(self.aside, ignore_errors=True)
            barrier()
            save(self.aside / target.name)

        try:
            needed = self._last_bytes() or expected_bytes
            self.disk.retry(attempt, self.run.path, needed, worst=worst_of_all)
            # only now have all processes written all of it
            commit = partial(self._commit, target) if main else lambda: None
            self.disk.retry(commit, self.run.path, worst=worst_of_all)
        finally:
            if main:
                shutil.rmtree(self.aside, ignore_errors=True)

    def _commit(self, target: Checkpoint) -> None:
        with RankFiles.of_this_process().writing():
            self._seal(target)
        self._prune(target)

    def _seal(self, target: Checkpoint) -> None:
        written = self.aside / target.name
        (written / RUN_CONFIG).write_text(json.dumps(self.run_config))
        for name in LEFT_OUT:
            (written / name).unlink(missing_ok=True)
        write_manifest(written, step=target.step)
        shutil.rmtree(target.path, ignore_errors=True)  # one that does not verify
        os.replace(written, target.path)
        sync_folder(self.run.path)
        with suppress(LabError):  # on a full disk the record stays as it was
            self.run.update(sealed=target.step)

    def _prune(self, newest: Checkpoint) -> None:
        for checkpoint in Checkpoint.all_in(self.run.path)[self.keep :]:
            if checkpoint != newest:  # gone at once for other programs, then deleted
                leaving = checkpoint.path.with_name(f".old-{checkpoint.name}")
                checkpoint.path.rename(leaving)
                shutil.rmtree(leaving, ignore_errors=True)

    def _last_bytes(self) -> int:
        last = max(
            Checkpoint.all_in(self.run.path),
            key=lambda checkpoint: checkpoint.path.stat().st_mtime,
            default=None,
        )
        if last is None:
            return 0
        return sum(file.stat().st_size for file in last.path.rglob("*") if file.is_file())

"""The processes of a job: how many there are, which one speaks, and what they have to agree on."""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

from llmlab.errors import LabError

T = TypeVar("T")


def processes() -> int:
    """Returns the number of processes of the job, as `torchrun` and `accelerate launch` start them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Returns whether this process writes and speaks for the job."""
    return os.environ.get("RANK", "0") == "0"


def init_process_group(device: str, timeout: int) -> None:
    """Connects the processes of a job, where there are several.

    Args:
        device: "cpu", "cuda" ...
        timeout: seconds that a process waits for the others.
    """
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu", timeout=timedelta(seconds=timeout))


def destroy_process_group() -> None:
    """Ends the connection between the processes of a job: its threads must not be running when the process
    ends.

    They run as long as any model that was shared holds the connection, and trainers hold themselves: these go
    first. A thread that still ran was seen to abort the process after its work was done.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def broadcast_from_main(decide: Callable[[], T]) -> T:
    """Returns what the main process decides, in every process of the job.

    Raises:
        LabError: in every process, when deciding does.
    """
    if processes() == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    box: list[object] = [None, None]  # what was decided; the parts of a LabError
    if is_main():
        try:
            box[0] = decide()
        except LabError as error:
            box[1] = (error.what, error.where, error.remedy, error.exit_code)
    broadcast_object_list(box)
    if box[1]:
        what, where, remedy, exit_code = cast(tuple[str, str, str, int], box[1])
        raise LabError(what, where=where, remedy=remedy, exit_code=exit_code)
    return cast(T, box[0])


def times_started_again() -> int:
    """Returns how often torchrun has started the processes of the job again after one had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def refuse_unshared(folder: Path) -> None:
    """Looks whether the machines of a job share the place of a folder: the first process writes a file there,
    which all have to see.

    Raises:
        LabError: in every process, when one does not see it.
    """
    if processes() == int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return
    mark = broadcast_from_main(lambda: folder.parent / f".seen-by-all-{uuid.uuid4().hex}")
    if is_main():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    all_processes_agree(True)  # it is written
    shared = all_processes_agree(mark.exists() or _appears(mark))
    if is_main():
        mark.unlink(missing_ok=True)
    if not shared:
        raise LabError(
            "the machines of the job do not share this folder: some do not see what the first one writes",
            where=str(folder.parent.absolute()),
            remedy="set `output_dir` to a place on a disk that all of them mount",
        )


def _appears(file: Path, seconds: float = 10.0) -> bool:
    """Returns whether a file is seen within some time, which a network's file system may need."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if file.name in os.listdir(file.parent if file.parent.is_dir() else "/"):
            return True
        time.sleep(0.2)
    return False


def worst_of_all(own: int) -> int:
    """Returns the largest of the numbers that the processes of the job give; all of them have to ask,
    and wait for each other.
    """
    if processes() == 1:
        return own
    from accelerate.utils import gather_object

    return int(max(gather_object([own])))


def all_processes_agree(holds: bool) -> bool:
    """Returns whether something holds in every process of the job; all of them have to ask,
    and wait for each other.
    """
    if processes() == 1:
        return holds
    from accelerate.utils import gather_object

    return all(gather_object([holds]))

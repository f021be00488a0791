"""The processes a run lives in: quiet libraries, memory that is kept, one of several ranks."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# what libraries warn of although it is as it should be: the start of the text, and why
KNOWN_WARNINGS = {
    "You are using 'rollout_func', which is an experimental feature": (
        "it is how TRL is given the lab's sampling, which draws every answer by seed, step and row"
    ),
    "Could not find a config file in": (
        "peft looks for the vocabulary's size where an adapter stands on an adapter; the lab never changes it"
    ),
}


def quiet_libraries(console: Console | None = None) -> None:
    """Lets the libraries' logs speak only of errors, and their warnings in one line each on the console
    (standard error).

    Left out are the warnings that a user can do nothing about: deprecations, which are the lab's to mend (its
        tests fail on them), and `KNOWN_WARNINGS`.
    """
    import datasets
    import transformers

    from llmlab.screen import screen

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for deprecation in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", deprecation)
    for start in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(start))
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *place: object) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.add(text)
            where, _, inside = filename.partition("site-packages/")
            library = re.split(r"[/.]", inside)[0] if inside else Path(where).stem
            line = f"{library} warns: {text}"
            (console or screen()).print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)

    warnings.showwarning = show


@contextmanager
def quiet_within(console: Console) -> Iterator[None]:
    """Does what `quiet_libraries` does; the process finds its own filters of warnings again behind it."""
    with warnings.catch_warnings():
        quiet_libraries(console)
        yield


def tune_malloc(*, sparing: bool) -> None:
    """Lets the C library keep freed memory instead of giving every large tensor back to the system.

    On the CPU each step would otherwise fault in its activations page by page; `benchmarks/speed.py` prints
    the effect. What is kept is not all used again: an aligned block does not fit where one of its own size
    was, so the heap grows by what every layer frees. Where memory comes before speed (`sparing`), large
    blocks are given back.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 20 if sparing else 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 27 if sparing else (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return  # another C library: slower, not wrong


def processes() -> int:
    """Returns the number of processes of the job, as `torchrun` and `accelerate launch` start them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Returns whether this process writes and speaks for the job."""
    return os.environ.get("RANK", "0") == "0"


def init_process_group(device: str) -> None:
    """Connects the processes of a job, where there are several."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


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

    from llmlab.errors import LabError

    box: list = [None, None]
    if is_main():
        try:
            box[0] = decide()
        except LabError as error:
            box[1] = (error.what, error.where, error.remedy, error.exit_code)
    broadcast_object_list(box)
    if box[1]:
        raise LabError(box[1][0], where=box[1][1], remedy=box[1][2], exit_code=box[1][3])
    return box[0]


def all_processes_agree(holds: bool) -> bool:
    """Returns whether something holds in every process of the job; all of them have to ask,
    and wait for each other.
    """
    if processes() == 1:
        return holds
    from accelerate.utils import gather_object

    return all(gather_object([holds]))


def free_memory() -> None:
    """Gives memory that nobody uses back to the device and to the system."""
    import torch

    gc.collect()
    if "pyarrow" in sys.modules:  # which has an allocator of its own
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


def peak_flops(device: str, precision: str) -> float:
    """Returns the FLOPs a second that the device reaches in a matrix product: the best of a few,
    in a fraction of a second.
    """
    import time

    import torch

    size, dtype = (4096, torch.bfloat16) if device == "cuda" else (768, torch.float32)
    if precision == "fp32":
        dtype = torch.float32
    one = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best

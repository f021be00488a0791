"""The process a run lives in: quiet libraries, memory that is kept."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Lets the libraries speak only of errors: the dashboard says what is happening."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore")


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory instead of giving every large tensor back to the system.

    On the CPU each step would otherwise fault in its activations page by page; `benchmarks/speed.py` prints the effect.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return  # another C library: slower, not wrong

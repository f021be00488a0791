"""The screens of the reference cache: what is kept, whether it is whole,
and what a sequential DPO run will need.
"""

from __future__ import annotations

import math
import struct
import time
from itertools import islice
from pathlib import Path

from rich.table import Table

from llmlab.config import DPOConfig
from llmlab.errors import LabError
from llmlab.models.headers import tensor_sizes
from llmlab.readable import listed
from llmlab.runs.folder import find_model
from llmlab.training.reference.cache import ReferenceCache, caches
from llmlab.ui.units import size

BYTES_PER_PAIR = 40
LOOKED_AT = 500  # pairs whose lengths are taken for the estimate
CHARACTERS_PER_TOKEN = 4.0


def caches_table(root: Path) -> Table:
    """Returns every cache below a folder."""
    table = Table("cache", "reference", "made with", "pairs", "size", "")
    for cache in caches(root):
        about = cache.description
        how = ", ".join(
            str(about.get(name))
            for name in ("precision", "quantisation", "max_length", "stores")
            if name in about
        )
        table.add_row(
            cache.folder.name,
            f"{about.get('name', '?')} ({str(about.get('reference', '?'))[:8]})",
            how,
            f"{len(cache):,}",
            size(cache.bytes_on_disk()),
            "; ".join(cache.faults),
        )
    if not table.row_count:
        table.add_row(f"none in {root}", *[""] * 5)
    return table


def verified(root: Path) -> tuple[list[str], bool]:
    """Returns a line for every cache, and whether all parts are whole."""
    found = caches(root)
    lines = []
    for cache in found:
        lines += [f"{cache.folder.name}: {fault}" for fault in cache.faults]
        lines.append(f"{cache.folder.name}: {len(cache):,} pairs whole")
    return lines or [f"no cache in {root}"], not any(cache.faults for cache in found)


def matching(root: Path, name: str | None) -> list[ReferenceCache]:
    """Returns the caches whose names begin with `name`, all without one.

    Raises:
        LabError: when there is none.
    """
    chosen = [cache for cache in caches(root) if cache.folder.name.startswith(name or "")]
    if not chosen:
        raise LabError(f"no cache {name or ''} in {root}".replace("  ", " "), remedy="llmlab cache list")
    return chosen


def clear(chosen: list[ReferenceCache]) -> tuple[list[str], bool]:
    """Deletes the caches that no run is using; returns a line for each, and whether any was deleted."""
    lines, deleted = [], False
    for cache in chosen:
        freed = cache.bytes_on_disk()
        try:
            users = cache.delete()
        except OSError as error:
            lines.append(f"{cache.folder.name}: cannot be deleted ({error.strerror or error})")
            continue
        if users:
            lines.append(f"{cache.folder.name}: skipped, in use by {listed(users)}")
        else:
            lines.append(f"{cache.folder.name}: {len(cache):,} pairs, {size(freed)} freed")
            deleted = True
    return lines, deleted


def reference_plan(config: DPOConfig) -> Table:
    """Returns what the two phases of a DPO run need, as far as it is known without loading a model."""
    table = Table(show_header=False, title="reference and policy", title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    weights = _weights(config.reference_checkpoint or config.policy_checkpoint)
    pairs, tokens = _pairs(config)
    pairs = min(pairs, config.max_steps * config.batch_size)  # of one process; held-out pairs beside them
    if config.reference == "live":
        beside = config.adapter == "none" or config.reference_checkpoint
        how = "in memory beside the policy" if beside else "the policy without its adapter"
        table.add_row("reference", f"live: {how}, asked in every step")
        return table
    width = {"4bit": 0.55, "8bit": 1.1}.get(config.quantised, 4.0) if config.adapter != "none" else 4.0
    if weights:
        parameters = weights / 4  # counted as fp32
        table.add_row(
            "phase 1", f"the reference alone: about {size(parameters * width)} of weights, no gradients"
        )
        trained = parameters * 16 if config.adapter == "none" else parameters * (width + 0.2)
        table.add_row(
            "phase 2", f"the policy alone: about {size(trained)} of weights, gradients and optimizer states"
        )
    else:
        table.add_row(
            "phases",
            "first the reference alone, then the policy alone (sizes unknown: it is not on this machine)",
        )
    if pairs:
        table.add_row("cache", f"{pairs:,} pairs, about {size(pairs * BYTES_PER_PAIR)} in {config.cache_dir}")
        if weights:
            work = 2 * weights / 4 * pairs * tokens
            table.add_row(
                "filling",
                f"about {tokens:,.0f} tokens a pair, {work:.3g} FLOPs: {_minutes(work / _speed())} on this"
                " processor",
            )
    known = [
        cache
        for cache in caches(Path(config.cache_dir))
        if str(cache.description.get("name")) == str(_name(config))
    ]
    if known:
        table.add_row("known", ", ".join(f"{len(cache):,} pairs in {cache.folder.name}" for cache in known))
    return table


def _name(config: DPOConfig) -> str:
    return config.reference_checkpoint or config.policy_checkpoint


def _weights(name: str) -> float:
    """Returns the bytes of a local checkpoint's weights as fp32, 0 where it is not here."""
    try:
        where = Path(find_model(name))
    except LabError:
        return 0
    if where.is_file():
        return where.stat().st_size * 7.0  # GGUF, about 4.5 bits a weight
    try:
        return 4.0 * sum(math.prod(shape) for shape in tensor_sizes(where).values())
    except (OSError, ValueError, KeyError, TypeError, struct.error):  # damaged, which its loading tells
        return 0


def _pairs(config: DPOConfig) -> tuple[int, float]:
    """Returns the number of local pairs and the tokens of one, prompt twice,
    estimated from its characters.
    """
    from llmlab.data.local import local_files
    from llmlab.data.opening import open_source
    from llmlab.data.pipeline import SourceRows

    count, characters, looked = 0, 0.0, 0
    for source in [*config.datasets, *config.eval_datasets]:
        if not local_files(source.name, source.split):
            continue
        opened = open_source(source, ("preference",))
        count += len(opened.rows)
        for _, row in islice(SourceRows(opened), LOOKED_AT):
            prompt = sum(len(turn["content"]) for turn in row["prompt"])
            characters += 2 * prompt + len(row["chosen"]) + len(row["rejected"])
            looked += 1
    mean = characters / looked / CHARACTERS_PER_TOKEN if looked else 0.0
    return count, min(mean + 20, 2.0 * config.max_length)


def _speed() -> float:
    """Returns the FLOPs per second of a matrix product here, about a third of which a model reaches."""
    import numpy as np

    a = np.ones((768, 768), np.float32)
    a @ a
    began = time.perf_counter()
    for _ in range(6):
        a @ a
    return 6 * 2 * 768**3 / (time.perf_counter() - began) / 3


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )

"""The screens of the reference cache: what is kept, whether it is whole,
and what a sequential DPO run will need.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from llmlab.config import DPOConfig
from llmlab.errors import LabError
from llmlab.readable import listed
from llmlab.training.reference.cache import ReferenceCache, caches
from llmlab.training.reference.forecast import LiveReference, SequentialReference, reference_forecast
from llmlab.ui.units import size


def caches_table(root: Path) -> Table:
    """Returns every cache below a folder."""
    table = Table("cache", "reference", "made with", "pairs", "size", "")
    for cache in caches(root):
        key = cache.description
        how = ", ".join(
            str(key.get(name))
            for name in ("precision", "quantisation", "max_length", "stores")
            if name in key
        )
        table.add_row(
            cache.folder.name,
            f"{key.get('name', '?')} ({str(key.get('reference', '?'))[:8]})",
            how,
            f"{len(cache):,}",
            size(cache.bytes_on_disk()),
            "; ".join(cache.faults),
        )
    if not table.row_count:
        table.add_row(f"none in {root}", *[""] * 5)
    return table


def caches_data(root: Path) -> list[dict[str, Any]]:
    """Returns every cache below a folder, as data."""
    return [
        {
            "name": cache.folder.name,
            "made_with": cache.description,
            "pairs": len(cache),
            "bytes": cache.bytes_on_disk(),
            "faults": list(cache.faults),
        }
        for cache in caches(root)
    ]


def verified(root: Path) -> tuple[list[str], bool]:
    """Returns a line for every cache, and whether all parts are whole."""
    cache_list = caches(root)
    lines = []
    for cache in cache_list:
        lines += [f"{cache.folder.name}: {fault}" for fault in cache.faults]
        lines.append(f"{cache.folder.name}: {len(cache):,} pairs, all intact")
    return lines or [f"no cache in {root}"], not any(cache.faults for cache in cache_list)


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


def reference_table(config: DPOConfig) -> Table:
    """Returns what the reference of a run needs, as far as it is known without loading a model."""
    table = Table(show_header=False, title="reference and policy", title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    forecast = reference_forecast(config)
    rows = _live_rows(forecast) if isinstance(forecast, LiveReference) else _sequential_rows(forecast)
    for name, value in rows:
        table.add_row(name, value)
    return table


def _live_rows(forecast: LiveReference) -> Iterator[tuple[str, str]]:
    how = "in memory beside the policy" if forecast.beside else "the policy without its adapter"
    yield "reference", f"live: {how}, evaluated in every step"


def _sequential_rows(forecast: SequentialReference) -> Iterator[tuple[str, str]]:
    if forecast.reference and forecast.policy:
        weights, trained = size(forecast.reference), size(forecast.policy)
        yield "phase 1", f"the reference alone: about {weights} of weights, no gradients"
        yield "phase 2", f"the policy alone: about {trained} of weights, gradients and optimizer states"
    else:
        order = "first the reference alone, then the policy alone"
        yield "phases", f"{order} (sizes unknown: it is not on this machine)"
    if forecast.pairs:
        yield "cache", f"{forecast.pairs:,} pairs, about {size(forecast.cache)} in {forecast.cache_dir}"
    if filling := forecast.filling:
        work = f"about {filling.tokens_per_pair:,.0f} tokens a pair, {filling.flops:.3g} FLOPs"
        yield "filling", f"{work}: {_minutes(filling.seconds)} on this processor"
    if forecast.known:
        yield "known", ", ".join(f"{count:,} pairs in {folder}" for count, folder in forecast.known)


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )

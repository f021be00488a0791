"""Commands for the reference caches of sequential DPO: cache list, cache verify, cache clear."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli.options import JsonOption, load_for_run, print_json, show
from llmlab.errors import LabError
from llmlab.readable import listed, visible

CACHES = Path("checkpoints/reference_cache")
CacheDir = Annotated[Path, typer.Option("--cache-dir", help="Folder of the caches.")]


def list_caches(cache_dir: CacheDir = CACHES, as_json: JsonOption = False) -> None:
    """Every cache: its reference, pairs, size on disk, damaged parts."""
    from llmlab.ui.cache import caches_data, caches_table

    if as_json:
        print_json(caches_data(existing(cache_dir)))
        return
    show(caches_table(existing(cache_dir)))


def verify_caches(
    config: Annotated[
        Path | None, typer.Argument(help="A DPO config: recompute some of its pairs with the reference.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs to recompute.")] = 32,
    cache_dir: CacheDir = CACHES,
    as_json: JsonOption = False,
) -> None:
    """Check every part; with a config, recompute a sample of its pairs and report the largest difference."""
    if config is None:
        from llmlab.ui.cache import verified

        lines, whole = verified(existing(cache_dir))
        if as_json:
            print_json({"intact": whole, "caches": lines})
        else:
            typer.echo(visible("\n".join(lines)))
        raise typer.Exit(0 if whole else 2)
    from llmlab.config import DPOConfig

    loaded = load_for_run(config, None)
    if not isinstance(loaded, DPOConfig) or loaded.reference != "sequential":
        raise LabError('is not a "dpo" config with a sequential reference', where=str(config))
    from llmlab.libraries import quiet_libraries
    from llmlab.screen import warn
    from llmlab.training.reference.scorer import TOLERANCE, recompute

    quiet_libraries(warn)
    checked, largest = recompute(loaded, pairs)
    if as_json:
        print_json({"pairs": checked, "largest_difference": largest})
    else:
        typer.echo(
            f"{checked:,} pairs recomputed: the largest difference is {largest:.3g} (log-probability of an"
            " answer)"
        )
    if largest > TOLERANCE:
        raise LabError(
            "the cache disagrees with its reference", where=loaded.cache_dir, remedy="llmlab cache clear"
        )


def clear_caches(
    name: Annotated[
        str | None, typer.Argument(help="A cache, by the start of its name; default: all.")
    ] = None,
    cache_dir: CacheDir = CACHES,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a cache, or all of them; what a run is using is skipped."""
    from llmlab.ui.cache import clear, matching

    chosen = matching(cache_dir, name)
    if not yes:
        if not sys.stdin.isatty():
            raise LabError("stdin is not a terminal", remedy="add --yes")
        typer.confirm(visible(f"Delete {listed(cache.folder.name for cache in chosen)}?"), abort=True)
    lines, deleted = clear(chosen)
    if as_json:
        print_json({"deleted": deleted, "caches": lines})
    else:
        typer.echo(visible("\n".join(lines)))
    raise typer.Exit(0 if deleted else 2)


def existing(cache_dir: Path) -> Path:
    """Returns the folder of the caches; one that was named has to be there.

    Raises:
        LabError: when it is not.
    """
    if cache_dir != CACHES and not cache_dir.is_dir():
        raise LabError("there is no such folder", where=str(cache_dir), remedy=f"the default is {CACHES}")
    return cache_dir

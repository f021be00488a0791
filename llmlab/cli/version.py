"""What `llmlab --version` says."""

from __future__ import annotations

import typer

from llmlab import __version__

BESIDE = ("torch", "transformers", "trl")


def show_version(asked: bool) -> None:
    """Prints the version and those of the libraries that matter most, without loading them."""
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    beside = ", ".join(f"{name} {installed(name)}" for name in BESIDE)
    typer.echo(f"llmlab {__version__} ({beside})")
    raise typer.Exit

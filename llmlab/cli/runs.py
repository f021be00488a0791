"""Commands for what is on disk and on this machine: runs, info, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from llmlab.cli.options import show
from llmlab.errors import LabError
from llmlab.readable import visible


def runs(
    action: Annotated[
        str | None, typer.Argument(help="`verify` checks the files of a run against their manifests.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="The run to verify.")] = None,
) -> None:
    """Every run with its status, parent and best figure."""
    from llmlab.runs.verify import verify_run
    from llmlab.ui.runs import runs_table

    if action is None:
        show(runs_table())
    elif action == "verify" and name:
        faults = verify_run(name)
        typer.echo(visible("\n".join(f"{path}: {fault or 'verified'}" for path, fault in faults.items())))
        raise typer.Exit(2 if any(faults.values()) else 0)
    elif action == "verify":
        raise LabError(
            "`runs verify` needs the name of a run", remedy="`llmlab runs` lists them: llmlab runs verify RUN"
        )
    else:
        raise LabError(f"unknown action {action!r}", remedy="llmlab runs, or llmlab runs verify RUN")


def info(checkpoint: Annotated[str, typer.Argument(help="A run or a model folder.")]) -> None:
    """Architecture, parameters, method, steps, lineage and manifest of a checkpoint."""
    from llmlab.ui.runs import info_table

    show(info_table(checkpoint))


def doctor() -> None:
    """Python, packages, devices, memory, disk, hub: what is here and what is missing for what."""
    from llmlab.runs.doctor import findings
    from llmlab.ui.doctor import doctor_table

    show(doctor_table(findings()))

"""Commands for configs of other tools: config convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.completing import kinds, one_of
from llmlab.cli.options import JsonOption, print_json
from llmlab.readable import shortened, visible

if TYPE_CHECKING:
    from llmlab.config.convert import Conversion

TOOLS = "trl|llamafactory|axolotl"


def convert(
    config: Annotated[Path, typer.Argument(help="A YAML or JSON config of another tool.")],
    from_: Annotated[
        str,
        typer.Option(
            "--from", metavar=TOOLS, help="Whose it is; left out, recognised.", autocompletion=one_of(TOOLS)
        ),
    ] = "",
    kind: Annotated[
        str,
        typer.Option(help="Of the result, where the file does not say it: TRL's.", autocompletion=kinds),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write, JSON or YAML; left out, stdout."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a config of TRL, LLaMA-Factory or axolotl; what has no counterpart is listed on stderr."""
    from llmlab.config import save_config
    from llmlab.config.convert import convert_file

    done = convert_file(config, from_, kind)
    if output:
        save_config(done.config, output)
    _tell(done)
    if as_json:
        print_json({**vars(done), "config": done.config.to_json_dict(), "path": output})
    elif output:
        typer.echo(visible(str(output)))
    else:
        typer.echo(json.dumps(done.config.to_json_dict(), indent=2))


def _tell(done: Conversion) -> None:
    """Says on stderr what became of each option."""
    lines = [f"{done.tool}, {done.config.KIND}: {len(done.converted)} options converted"]
    lines += [f"default of {done.tool}: {name} {value}" for name, value in done.defaults.items()]
    lines += [f"note: {name}: {why}" for name, why in done.needless.items()]
    lines += [
        f"not converted: {one.name} {shortened(json.dumps(one.value), 60)}: {one.reason}" for one in done.left
    ]
    for line in lines:
        typer.echo(visible(line), err=True)

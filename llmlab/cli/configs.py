"""Commands for configs: new, schema, check, methods."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import (
    ConfigArgument,
    JsonOption,
    KindArgument,
    SetOption,
    load_for_run,
    parse_changes,
    print_json,
    quiet_datasets,
    show,
)
from llmlab.errors import LabError
from llmlab.readable import visible


def new(
    kind: KindArgument,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset to start from: a known shape; for methods 100m, 1b, 7b, a recipe.",
            autocompletion=completing.presets,
        ),
    ] = None,
    set_: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write the config to.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Use the defaults and ask no questions.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fill in the form for one config and save it."""
    from llmlab.config import KindConfig, apply_changes, save_config
    from llmlab.config.loader import kind_class
    from llmlab.config.presets import preset as model_preset
    from llmlab.config.recipes import RECIPES, preset_options
    from llmlab.models.resolve import with_newest

    cls = kind_class(kind)
    start: KindConfig
    if preset and kind == "model":
        start = model_preset(preset)
    else:
        start = cls(**{"kind": kind, **(preset_options(kind, preset) if preset else {})})
    config = with_newest(apply_changes(start, parse_changes(set_)), required=False)
    if not yes:
        if not sys.stdin.isatty():
            raise LabError("stdin is not a terminal", remedy="add --yes and --set KEY=VALUE")
        from llmlab.ui.forms import fill_in

        filled_in = fill_in(config, origin=preset or "")
        if filled_in is None:
            raise typer.Exit(130)
        config = filled_in
    alone = preset and (kind == "model" or preset in RECIPES)  # a name that says enough
    name = preset if alone else f"{kind}-{preset}" if preset else kind
    path = save_config(config, output or Path("model_configs") / f"{name}.json")
    if as_json:
        print_json({"path": path, "kind": kind})
    else:
        typer.echo(visible(str(path)))


def schema(
    kind: KindArgument,
) -> None:
    """Print the JSON Schema of a config, for editors."""
    from llmlab.config import schema as json_schema

    typer.echo(json.dumps(json_schema(kind), indent=2))


def check(
    config: ConfigArgument,
    set_: SetOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run and time a few steps, in a temporary folder.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate a config, show what it will cost and look at its data; starts nothing."""
    from llmlab.config.training import TrainingConfig
    from llmlab.screen import LabConsole

    loaded = load_for_run(config, set_)
    if measure and not isinstance(loaded, TrainingConfig):
        raise LabError(
            f"is of kind {loaded.kind!r}, which has no steps to measure",
            where=str(config),
            remedy="name a training config",
        )
    from llmlab.planning.measured import measure as measure_steps

    quiet_datasets()
    if as_json:
        from llmlab.ui.preflight import checked

        timed = measure_steps(loaded) if measure and isinstance(loaded, TrainingConfig) else None
        print_json(checked(loaded) | ({"measured": timed} if timed else {}))
        return
    from llmlab.ui import preflight

    console = LabConsole()
    preflight.show(loaded, console)
    if measure and isinstance(loaded, TrainingConfig):
        for line in preflight.measured_lines(preflight.measured(loaded, console), loaded):
            console.print(line, highlight=False, soft_wrap=True)


def recipes(as_json: JsonOption = False) -> None:
    """Whole runs after published recipes: the hardware, the data and the source of each."""
    if as_json:
        from llmlab.config.recipes import RECIPES

        print_json(RECIPES)
        return
    from llmlab.ui.recipes import recipes_table

    show(recipes_table())


def methods(as_json: JsonOption = False) -> None:
    """What each training method learns from, what it costs, and when to choose it."""
    if as_json:
        from llmlab.training.registry import STAGES

        print_json(list(STAGES.values()))
        return
    from llmlab.ui.methods import methods_table

    show(methods_table())

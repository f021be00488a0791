"""The command line: the table of commands. Each group of commands is a file, each command a short function.

Everything heavy is imported inside the commands, so that help appears at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmlab.cli import (
    assess,
    cache,
    chat,
    completion,
    configs,
    convert,
    data,
    data_quality,
    evaluate,
    export,
    fit,
    generate,
    preferences,
    publish,
    runs,
    selftest,
    serve,
    slurm,
    training,
)
from llmlab.cli.examples import add_examples
from llmlab.cli.options import parse_changes
from llmlab.cli.version import show_version
from llmlab.errors import LabError

__all__ = ["app", "command_line", "parse_changes"]

app = typer.Typer(
    name="llmlab",
    help="From an empty machine to an aligned chat model. Without a command: the menu.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    configs.new,
    configs.schema,
    configs.check,
    fit.fit,
    configs.methods,
    configs.recipes,
    training.run,
    slurm.slurm,
    chat.chat,
    generate.generate,
    serve.serve,
    training.merge,
    export.export,
    publish.card,
    publish.push,
    evaluate.evaluate,
    evaluate.evaluations,
    assess.assess,
    training.tokenizer,
    training.quickstart,
    runs.info,
    runs.doctor,
    selftest.selftest,
    completion.completion,
)
for command in COMMANDS:
    app.command()(command)

config_commands = typer.Typer(help="Convert configs of other tools.", no_args_is_help=True)
config_commands.callback()(lambda: None)  # a group, though it has one command
config_commands.command("convert")(convert.convert)
app.add_typer(config_commands, name="config")

data_commands = typer.Typer(
    help="Inspect, clean and compare datasets; list the known ones.", no_args_is_help=True
)
data_commands.command("inspect")(data.inspect_source)
data_commands.command("clean")(data_quality.clean_source)
data_commands.command("overlap")(data_quality.overlap_of_sources)
data_commands.command("catalog")(data.catalog)
app.add_typer(data_commands, name="data")

app.add_typer(runs.runs_commands, name="runs")
app.add_typer(preferences.preferences_commands, name="preferences")

cache_commands = typer.Typer(
    help="The reference log-probabilities that sequential DPO keeps.", no_args_is_help=True
)
cache_commands.command("list")(cache.list_caches)
cache_commands.command("verify")(cache.verify_caches)
cache_commands.command("clear")(cache.clear_caches)
app.add_typer(cache_commands, name="cache")

add_examples(app)


@app.callback(invoke_without_command=True)
def menu(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Versions of llmlab and its libraries."
        ),
    ] = False,
) -> None:
    """From an empty machine to an aligned chat model. Without a command: the menu."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())  # at a terminal the program opens the menu without coming here
        raise typer.Exit(2)


def command_line(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: of the program; left out, its own.

    Raises:
        LabError: when the command is not known, cannot be read so, or cannot do what is asked.
    """
    try:
        name = "llmlab" if completion.is_completing() else None  # as the shell's script calls it
        code: int | None = app(arguments, standalone_mode=False, prog_name=name)
        return code or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        place = context.command_path if context else "llmlab"
        raise LabError(
            error.format_message().rstrip("."), remedy=f"`{place.strip()} -h` lists the arguments and options"
        ) from None
    except (
        OSError
    ) as error:  # a name too long, a link in a circle, a folder that cannot be entered: told by the system
        if not error.filename:
            raise
        raise LabError(f"cannot be used ({error.strerror})", where=str(error.filename)) from None

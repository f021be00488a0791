"""The command that puts a model behind the interface of OpenAI's server: serve."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.chat import chat_settings
from llmlab.cli.completing import one_of
from llmlab.cli.options import (
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    LoadInOption,
    SetOption,
    load_options,
)
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.config.chat import ChatSettings
    from llmlab.config.loading import LoadOptions
    from llmlab.config.serving import ServeOptions

PACKAGES = ("fastapi", "uvicorn")


def serve(
    checkpoint: CheckpointArgument,
    host: Annotated[
        str,
        typer.Option(help="Address it listens on; another than this machine's own needs an API key."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port it listens on; 0 takes a free one.")] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model; left out, its name as given.")] = "",
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key that requests bring; left out, LLMLAB_API_KEY."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="auto|transformers|vllm",
            help="What computes the answers.",
            autocompletion=one_of("auto|transformers|vllm"),
        ),
    ] = "auto",
    load_in: LoadInOption = "none",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    set_: SetOption = None,
) -> None:
    """Serve a model to OpenAI's clients: chat and text completions, streamed, until Ctrl+C."""
    from llmlab.config.base import validate
    from llmlab.config.chat import ChatSettings
    from llmlab.config.serving import ServeOptions
    from llmlab.models.resolve import resolve_model
    from llmlab.serving import vllm
    from llmlab.serving.keys import find_key, refuse_open

    load = load_options(load_in, device, dtype)
    settings = chat_settings(set_)
    options = validate(ServeOptions, {"host": host, "port": port, "name": name, "engine": engine})
    if settings.show_alpha:
        raise LabError("`show_alpha` colours a chat at a terminal", remedy="leave it out")
    key = find_key(api_key_file)
    refuse_open(options.host, key)
    ref = resolve_model(checkpoint)
    served_name = options.name or checkpoint
    obstacle = vllm.why_not(ref, load, changed=settings != ChatSettings())
    if options.engine == "vllm" and obstacle:
        raise LabError(obstacle, where="--engine vllm", remedy="leave `--engine` out")
    if options.engine != "transformers" and not obstacle:
        raise typer.Exit(vllm.run(vllm.command(ref, load, options, served_name), key))
    _serve_here(checkpoint, served_name, key, settings, (load, options))


def refuse_without_packages() -> None:
    """Looks for what a server needs.

    Raises:
        LabError: with the command that installs it.
    """
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise LabError(f"serving needs {' and '.join(missing)}", remedy=f"pip install {' '.join(missing)}")


def _serve_here(
    checkpoint: str,
    name: str,
    key: str,
    settings: ChatSettings,
    how: tuple[LoadOptions, ServeOptions],
) -> None:
    refuse_without_packages()
    from llmlab.libraries import quiet_libraries
    from llmlab.screen import screen, warn
    from llmlab.serving.listening import address_of, bound_socket

    load, options = how
    with bound_socket(options.host, options.port) as listening:
        quiet_libraries(warn)
        from llmlab.models.loading import load_for_use
        from llmlab.serving.engine import Engine
        from llmlab.serving.requests import Served
        from llmlab.serving.server import serve

        model, tokenizer = load_for_use(checkpoint, load)
        served = Served(Engine(model, tokenizer, settings), name, key)
        listening.listen(128)
        print(f"{address_of(listening)}/v1", flush=True)
        kind = "a chat model" if served.engine.chats else "a base model: it continues texts"
        asks = "; requests bring the API key" if key else ""
        screen().print(f"serving {visible(name)}, {kind}{asks}; Ctrl+C ends it", soft_wrap=True)
        serve(served, listening)

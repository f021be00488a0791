"""The command for a conversation: chat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import (
    DeviceOption,
    DtypeOption,
    LoadInOption,
    SetOption,
    load_options,
    option_changes,
)
from llmlab.data.collection import COLLECTED
from llmlab.errors import LabError

if TYPE_CHECKING:
    from llmlab.chat.conversation import Conversation
    from llmlab.chat.session import ChatSession
    from llmlab.config.chat import ChatSettings
    from llmlab.config.loading import LoadOptions


def chat(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run, a model folder, a GGUF file, a hub id, or the URL of a server.",
            autocompletion=completing.runs,
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="Another model, whose answers are shown beside.", autocompletion=completing.runs),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="With --against: the models are not named, and you vote.")
    ] = False,
    collect: Annotated[
        Path,
        typer.Option(
            "--collect",
            "--votes",
            metavar="FILE",
            help="Where votes, /good, /bad and /rewrite are kept, as data to train on.",
        ),
    ] = COLLECTED,
    load_in: LoadInOption = "none",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    set_: SetOption = None,
) -> None:
    """Talk to a model; with piped input, one answer per line."""
    from llmlab.chat.addresses import is_url
    from llmlab.config.loading import LoadOptions
    from llmlab.runs.folder import find_model
    from llmlab.screen import LabConsole

    if blind and not against:
        raise LabError("`--blind` compares two models", remedy="add --against OTHER")
    if blind and not sys.stdin.isatty():
        raise LabError("`--blind` asks for votes, and stdin is not a terminal", remedy="leave it out")
    options = load_options(load_in, device, dtype)
    settings = chat_settings(set_)
    names = [checkpoint, *([against] if against else [])]
    for name in names:
        if not is_url(name):
            find_model(name)
    if options != LoadOptions() and all(is_url(name) for name in names):
        raise LabError(
            "`--load-in`, `--device` and `--dtype` are for models that are loaded here",
            remedy="give them to `llmlab serve`",
        )
    other: Conversation | None = None
    if not against or is_url(checkpoint) or is_url(against):
        session = open_session(checkpoint, settings, options)
        if against:
            other = open_session(against, settings.model_copy(update={"show_alpha": False}), options)
    else:
        session = local = open_local(checkpoint, settings, options)
        other = local.beside(against, options)
    from llmlab.chat.terminal import talk
    from llmlab.data.collection import Collection

    talk(session, LabConsole(), other, blind=blind, collection=Collection(collect))


def chat_settings(set_: list[str] | None) -> ChatSettings:
    """Returns how a model answers.

    Raises:
        LabError: when a change does not validate.
    """
    from llmlab.config.base import validate
    from llmlab.config.chat import ChatSettings

    return validate(ChatSettings, option_changes(ChatSettings, set_))


def open_session(checkpoint: str, settings: ChatSettings, options: LoadOptions) -> Conversation:
    """Returns a conversation with a model, or with one that is served at a URL."""
    from llmlab.chat.addresses import is_url

    if not is_url(checkpoint):
        return open_local(checkpoint, settings, options)
    from llmlab.chat.remote import RemoteSession

    return RemoteSession(checkpoint, settings)


def open_local(checkpoint: str, settings: ChatSettings, options: LoadOptions) -> ChatSession:
    """Returns a conversation with a model; a wrong name is refused before torch is loaded."""
    from llmlab.runs.folder import find_model

    find_model(checkpoint)
    from llmlab.libraries import importing, quiet_libraries
    from llmlab.screen import warn

    with importing():
        from llmlab.chat.session import ChatSession
        from llmlab.models.loading import load_for_use

    quiet_libraries(warn)
    model, tokenizer = load_for_use(checkpoint, options)
    return ChatSession(model, tokenizer, settings, name=checkpoint)

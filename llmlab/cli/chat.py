"""The command for a conversation: chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.options import (
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    LoadInOption,
    SetOption,
    load_options,
    option_changes,
)

if TYPE_CHECKING:
    from llmlab.chat.session import ChatSession
    from llmlab.config.chat import ChatSettings
    from llmlab.config.loading import LoadOptions


def chat(
    checkpoint: CheckpointArgument,
    against: Annotated[
        str | None, typer.Option(help="Another model, whose answers are shown beside.")
    ] = None,
    load_in: LoadInOption = "none",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    set_: SetOption = None,
) -> None:
    """Talk to a model; with piped input, one answer per line."""
    from llmlab.runs.folder import find_model
    from llmlab.screen import LabConsole

    options = load_options(load_in, device, dtype)
    settings = chat_settings(set_)
    if against:
        find_model(against)
    session = open_session(checkpoint, settings, options)
    from llmlab.chat.session import chat as talk

    talk(session, LabConsole(), session.beside(against, options) if against else None)


def chat_settings(set_: list[str] | None) -> ChatSettings:
    """Returns how a model answers.

    Raises:
        LabError: when a change does not validate.
    """
    from llmlab.config.base import validate
    from llmlab.config.chat import ChatSettings

    return validate(ChatSettings, option_changes(ChatSettings, set_))


def open_session(checkpoint: str, settings: ChatSettings, options: LoadOptions) -> ChatSession:
    """Returns a conversation with a model; a wrong name is refused before torch is loaded."""
    from llmlab.runs.folder import find_model

    find_model(checkpoint)
    from llmlab.chat.session import ChatSession
    from llmlab.libraries import quiet_libraries
    from llmlab.models.loading import load_for_use
    from llmlab.screen import warn

    quiet_libraries(warn)
    model, tokenizer = load_for_use(checkpoint, options)
    return ChatSession(model, tokenizer, settings, name=checkpoint)

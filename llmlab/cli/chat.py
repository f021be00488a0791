"""Commands that talk to a model: chat, generate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.options import CheckpointArgument, SetOption, option_changes
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.chat.session import ChatSession


def chat(
    checkpoint: CheckpointArgument,
    against: Annotated[
        str | None, typer.Option(help="Another model, whose answers are shown beside.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Talk to a model; with piped input, one answer per line."""
    from llmlab.runs.folder import find_model
    from llmlab.screen import LabConsole

    if against:
        find_model(against)
    session = open_session(checkpoint, set_)
    from llmlab.chat.session import chat as talk

    talk(session, LabConsole(), session.beside(against) if against else None)


def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to answer or continue.")],
    set_: SetOption = None,
) -> None:
    """One completion on stdout."""
    session = open_session(checkpoint, set_)
    session.reply(prompt, lambda piece: print(visible(piece), end="", flush=True))
    print()


def open_session(checkpoint: str, set_: list[str] | None) -> ChatSession:
    """Returns a conversation with a model; a wrong name is refused before torch is loaded."""
    from llmlab.config.base import validate
    from llmlab.config.chat import ChatSettings

    settings = validate(ChatSettings, option_changes(ChatSettings, set_))
    from llmlab.runs.folder import find_model

    find_model(checkpoint)
    from llmlab.chat.session import ChatSession
    from llmlab.libraries import quiet_libraries
    from llmlab.models.device import choose_device
    from llmlab.models.load import load_model
    from llmlab.models.typed import moved
    from llmlab.screen import warn

    quiet_libraries(warn)
    model, tokenizer = load_model(checkpoint)
    return ChatSession(moved(model, choose_device("auto")), tokenizer, settings, name=checkpoint)

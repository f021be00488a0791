"""The menu's way out of the lab: an export, a push to the hub, a model card, a server."""

from __future__ import annotations

import re

from rich.console import Console

from llmlab.ui import commands
from llmlab.ui.pickers import BACK, pick_model
from llmlab.ui.prompts import Option, answer, confirm, plain, select, text

PUSH, CARD, SERVE = "push", "card", "serve"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def export_or_publish(console: Console, model: str = "") -> None:
    """Asks for a model, unless it is given, and what is to become of it."""
    from llmlab.config.export import ExportOptions

    model = model or pick_model("Export, publish or serve which model?", "weights", console)
    if not model:
        return
    formats = ExportOptions.options()["to"].choices
    picked = answer(
        select(
            "As what?",
            [
                *(Option(f"{name}: {what}", name) for name, what in formats.items()),
                Option("the Hugging Face Hub: upload it with its model card", PUSH),
                Option("its model card, on the screen", CARD),
                Option("a server for OpenAI's clients, until Ctrl+C", SERVE),
                *plain([BACK]),
            ],
        )
    )
    if picked in formats:
        _export(model, str(picked))
    elif picked == PUSH:
        _push(model)
    elif picked == CARD:
        commands.llmlab("card", model)
    elif picked == SERVE:
        serve_model(console, model)


def serve_model(console: Console, model: str = "") -> None:
    """Starts a server for a model; Ctrl+C ends it."""
    if model := model or pick_model("Serve which model?", "chat", console):
        console.print("Ctrl+C ends the server", style="dim")
        commands.llmlab("serve", model)


def _export(model: str, to: str) -> None:
    arguments = ["export", model, "--to", to]
    if to != "hf":
        from llmlab.config.export import TYPES

        picked = answer(
            select(
                "Weights in which number format?",
                [*(Option(f"{kind}: {what}", kind) for kind, what in TYPES.items()), *plain([BACK])],
            )
        )
        if picked in (None, BACK):
            return
        arguments += ["--quantize", str(picked)]
    commands.llmlab(*arguments)


def _push(model: str) -> None:
    name = answer(
        text(
            "To which repository? (OWNER/NAME)",
            validate=lambda line: bool(REPOSITORY.fullmatch(line.strip())) or "OWNER/NAME",
        )
    )
    if not name:
        return
    private = answer(confirm("Private?", default=True))
    if private is not None:
        commands.llmlab("push", model, name.strip(), *(["--private"] if private else []))

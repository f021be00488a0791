"""A sample of what a model says, as one text."""

from __future__ import annotations

from rich.text import Text


def sampled(prompt: str, answer: str, length: int) -> Text:
    """Returns the end of a prompt and the beginning of its answer, of about `length` characters together."""
    prompt, answer = (" ".join(text.split()) for text in (prompt, answer))
    shown = max(length // 3, length - len(answer))
    prompt = prompt if len(prompt) <= shown else f"...{prompt[3 - shown :]}"
    left = max(8, length - len(prompt))
    answer = answer if len(answer) <= left else f"{answer[: left - 3]}..."
    return Text(prompt, style="dim").append(" → ").append(answer, style="bold not dim")

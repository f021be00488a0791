"""What `/tokens` and `/why` show: lengths, and the probabilities of what was said. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from llmlab.errors import LabError
from llmlab.readable import visible

ALTERNATIVES, MOST = 3, 20  # likeliest tokens that are shown, and at most
MOST_ROWS = 60
MEANING = "probabilities of the model itself, before temperature, top-p and top-k"


@dataclass(frozen=True)
class Tokens:
    """How long a conversation is.

    Attributes:
        count: tokens that the model would read, the template's included.
        context: tokens that it reads at most; None where no end is known.
    """

    count: int
    context: int | None


@dataclass(frozen=True)
class Choice:
    """A token of an answer.

    Attributes:
        token: as text.
        probability: that the model gave it, before temperature, top-p and top-k.
        alternatives: the likeliest tokens in its place with their probabilities, itself among them.
    """

    token: str
    probability: float
    alternatives: tuple[tuple[str, float], ...]


def tokens_line(tokens: Tokens) -> str:
    """Returns the length of a conversation in words."""
    if not tokens.context:
        return f"{tokens.count:,} tokens; the model names no end of its context"
    left = max(0, tokens.context - tokens.count)
    share = tokens.count / tokens.context
    return f"{tokens.count:,} of {tokens.context:,} tokens ({share:.1%} of the context), {left:,} left"


def number_of_alternatives(text: str) -> int:
    """Returns how many likeliest tokens `/why N` asks for.

    Raises:
        LabError: when it is no number of them.
    """
    if not text:
        return ALTERNATIVES
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST):
        raise LabError(f"/why takes a number from 1 to {MOST}, not {text!r}", remedy="/why 5")
    return int(text)


def why_table(choices: list[Choice]) -> Table:
    """Returns the tokens of an answer, the likeliest beside."""
    table = Table()
    table.add_column("said", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("likeliest", overflow="fold")
    for choice in choices[:MOST_ROWS]:
        likely = Text("  ").join(
            Text.assemble(_shown(token), (f" {probability:.1%}", "dim"))
            for token, probability in choice.alternatives
        )
        first = choice.alternatives[0][0] == choice.token
        table.add_row(
            _shown(choice.token), f"{choice.probability:.1%}", likely, style="" if first else "bold"
        )
    if len(choices) > MOST_ROWS:
        table.caption = f"and {len(choices) - MOST_ROWS:,} tokens more"
    return table


def _shown(token: str) -> Text:
    """Returns a token with what cannot be seen made visible."""
    return Text(visible(token).replace("\n", "\u23ce").replace("\t", "\u21e5").replace(" ", "\u00b7"))

"""An Ollama Modelfile: where the weights are, how a conversation is written, where an answer ends.

Ollama's templates are Go's. The template of most models puts the same text before and after each turn of a
role; that text is read off the Jinja template itself, and checked against it on whole conversations.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llmlab.data.rendering import render, turn_ends

ROLES = ("system", "user", "assistant")
MARK = "\u2063{}\u2063"  # stands for the content of a turn: invisible separators around its name


@dataclass(frozen=True)
class Turns:
    """The text around the turns of a conversation.

    Attributes:
        before: of each role, what stands before its content.
        after: of each role, what stands behind it.
        start: what stands before the first turn, a standard system turn included; with a system turn it is
            part of that one's `before`.
        answer: what an answer begins behind.
    """

    before: dict[str, str]
    after: dict[str, str]
    start: str
    answer: str

    def text(self, messages: list[dict[str, str]]) -> str:
        """Returns a conversation as these texts write it."""
        has_system = bool(messages) and messages[0]["role"] == "system"
        turns = [self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages]
        return ("" if has_system else self.start) + "".join(turns) + self.answer


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Returns the texts around turns, or None where a template is more than that."""
    system, user, assistant = ({"role": role, "content": MARK.format(role)} for role in ROLES)
    plain = _pieces(tokenizer, [user, assistant, user], generate=True)
    closed = _pieces(tokenizer, [user, assistant, user], generate=False)
    whole = _pieces(tokenizer, [system, user, assistant, user], generate=True)
    if len(plain) != 4:
        return None
    if len(whole) != 5 or whole[2:] != plain[1:]:
        whole = []  # no system turns
    start, between, after_answer, ending = plain
    # what an answer begins behind stands only where one is asked for; else it belongs to the user's turn
    answer = ending[len(closed[3]) :] if len(closed) == 4 and ending.startswith(closed[3]) else ""
    after_user = ending.removesuffix(answer) if answer else ending
    if not between.startswith(after_user):
        return None
    for cut in _cuts(after_answer, after_user, tokenizer):
        before_user = after_answer[cut:]
        if not start.endswith(before_user) or (whole and not whole[1].endswith(before_user)):
            continue
        turns = Turns(
            before={"user": before_user, "assistant": between[len(after_user) :]},
            after={"user": after_user, "assistant": after_answer[:cut]},
            start=start.removesuffix(before_user),
            answer=answer,
        )
        if whole:
            turns.before["system"], turns.after["system"] = whole[0], whole[1].removesuffix(before_user)
        if _same(tokenizer, turns):
            return turns
    return None


def _pieces(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, generate: bool
) -> list[str]:
    """Returns the texts around the contents of a conversation; none where the template refuses it."""
    try:
        text = render(tokenizer, messages, generate=generate)
    except Exception:  # a template raises what it wants: that it knows no system turns, for one
        return []
    for role in ROLES:
        text = text.replace(MARK.format(role), "\0")
    return text.split("\0")


def _cuts(text: str, after_user: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns where the text between an answer and the next question can be cut, the likeliest first: where
    the user's turn ends, too, then behind special tokens and lines.
    """
    ends = [text.find(token) + len(token) for token in [*tokenizer.all_special_tokens, "\n"] if token in text]
    first = [len(after_user)] if text.startswith(after_user) else []
    return list(dict.fromkeys([*first, *sorted(ends), *range(len(text) + 1)]))


def _same(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> bool:
    """Returns whether the texts write conversations as the template does."""
    user, assistant = {"role": "user", "content": "Hi {{ you }}"}, {"role": "assistant", "content": "Hello."}
    system = [{"role": "system", "content": "Be short."}] if "system" in turns.before else []
    longer = [*system, *[user, assistant] * 2, user]
    return all(
        render(tokenizer, messages, generate=True) == turns.text(messages)
        for messages in ([user], [*system, user], [user, assistant, user], longer)
    )


def go_template(turns: Turns, bos: str) -> str:
    """Returns the Go template that writes the same; the token that begins a text is added by Ollama."""

    def literal(text: str) -> str:
        return text.replace("{{", '{{ "{{" }}')

    def without_bos(text: str) -> str:
        return text.removeprefix(bos) if bos else text

    start = literal(without_bos(turns.start))
    if start and "system" in turns.before:
        start = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{start}{{{{ end }}}}'
    cases: list[str] = []
    for role in turns.before:
        before = literal(without_bos(turns.before[role]) if role == "system" else turns.before[role])
        word = "else if" if cases else "if"
        cases.append(
            f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{literal(turns.after[role])}'
        )
    ended = f"{{{{ end }}}}{{{{ end }}}}{literal(turns.answer)}"
    return f"{start}{{{{ range .Messages }}}}{''.join(cases)}{ended}"


def modelfile(tokenizer: PreTrainedTokenizerBase, weights: str, context: int | None) -> tuple[str, list[str]]:
    """Returns a Modelfile and what is to be said of it.

    Args:
        tokenizer: with the chat template.
        weights: name of the GGUF file beside it.
        context: how many tokens the model reads; None where it names no end.
    """
    lines, notes = [f"FROM ./{weights}"], []
    if not tokenizer.chat_template:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
        notes.append("a base model: Ollama passes the prompt on as it is")
    elif turns := turns_of(tokenizer):
        lines.append(f'TEMPLATE """{go_template(turns, tokenizer.bos_token or "")}"""')
    else:
        notes.append(
            "the chat template is more than a text around each turn and cannot be written in Ollama's form:"
            " the Modelfile leaves it to Ollama, which knows the common ones"
        )
    for token in tokenizer.convert_ids_to_tokens(turn_ends(tokenizer) if tokenizer.chat_template else []):
        lines.append(f'PARAMETER stop "{token}"')
    if context:
        lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n", notes

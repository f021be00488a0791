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
        start: what stands before the first turn.
        unsaid: what stands before the first turn where no system turn is given: a standard one, with `start`.
        answer: what an answer begins behind.
    """

    before: dict[str, str]
    after: dict[str, str]
    start: str
    unsaid: str
    answer: str

    def text(self, messages: list[dict[str, str]]) -> str:
        """Returns a conversation as these texts write it."""
        has_system = bool(messages) and messages[0]["role"] == "system"
        turns = [self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages]
        return (self.start if has_system else self.unsaid) + "".join(turns) + self.answer


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Returns the texts around turns, or None where a template is more than that."""
    marked = {role: {"role": role, "content": MARK.format(role)} for role in ROLES}
    try:
        whole = render(
            tokenizer, [marked["system"], marked["user"], marked["assistant"], marked["user"]], generate=True
        )
        plain = render(tokenizer, [marked["user"], marked["assistant"], marked["user"]], generate=True)
        last = render(tokenizer, [marked["user"], marked["assistant"], marked["user"]])
    except Exception:  # a template may refuse system turns, or have any other demand
        return None
    system, user, assistant = (MARK.format(role) for role in ROLES)
    pieces = whole.replace(system, "\0").replace(user, "\0").replace(assistant, "\0").split("\0")
    shorter = plain.replace(user, "\0").replace(assistant, "\0").split("\0")
    if len(pieces) != 5 or len(shorter) != 4 or not plain.startswith(last) or pieces[2:] != shorter[1:]:
        return None
    answer = plain[len(last) :]
    after_user = pieces[4].removesuffix(answer)
    # "assistant's before" begins behind the user's after, and so on
    if not pieces[2].startswith(after_user) or not shorter[0]:
        return None
    before_assistant = pieces[2][len(after_user) :]
    for cut in range(len(pieces[3]) + 1):
        before_user = pieces[3][cut:]
        if not before_user or not pieces[1].endswith(before_user) or not shorter[0].endswith(before_user):
            continue
        after_system = pieces[1].removesuffix(before_user)
        found = Turns(
            {"system": pieces[0], "user": before_user, "assistant": before_assistant},
            {"system": after_system, "user": after_user, "assistant": pieces[3][:cut]},
            "",
            shorter[0].removesuffix(before_user),
            answer,
        )
        if _same(tokenizer, found):
            return found
    return None


def _same(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> bool:
    """Returns whether the texts write conversations as the template does."""
    user, assistant = {"role": "user", "content": "Hi {{ you }}"}, {"role": "assistant", "content": "Hello."}
    system = {"role": "system", "content": "Be short."}
    for messages in (
        [user],
        [system, user],
        [user, assistant, user],
        [system, user, assistant, user, assistant, user],
    ):
        if render(tokenizer, messages, generate=True) != turns.text(messages):
            return False
    return True


def go_template(turns: Turns, bos: str) -> str:
    """Returns the Go template that writes the same; the token that begins a text is added by Ollama."""

    def literal(text: str) -> str:
        return text.replace("{{", '{{ "{{" }}')

    def without_bos(text: str) -> str:
        return text.removeprefix(bos) if bos else text

    unsaid = literal(without_bos(turns.unsaid))
    first = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{unsaid}{{{{ end }}}}' if unsaid else ""
    cases: list[str] = []
    for role in ROLES:
        before = without_bos(turns.before[role]) if role == "system" else turns.before[role]
        word = "if" if not cases else "else if"
        after = literal(turns.after[role])
        cases.append(f'{{{{ {word} eq .Role "{role}" }}}}{literal(before)}{{{{ .Content }}}}{after}')
    return (
        f"{first}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{literal(turns.answer)}"
    )


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

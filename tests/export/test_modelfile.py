"""A Modelfile writes a conversation as the chat template does, in the formats of twelve families."""

import re

import pytest
from jinja2 import Environment

from llmlab.data.rendering import render, turn_ends
from llmlab.export.modelfile import go_template, modelfile, turns_of
from tests.templates import FAMILIES

USER, ASSISTANT = {"role": "user", "content": "Hi {{ .Content }}"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be short."}
JINJA = {  # the few words of Go's templates that are used, in Jinja's
    "range .Messages": "{% for message in messages %}",
    '"{{"': "{{ '{{' }}",
    ".Content": "{{ message.content }}",
    'if ne (index .Messages 0).Role "system"': "{% if messages[0].role != 'system' %}",
}


def as_jinja(template):
    opened = []

    def word(match):
        go = match[1]
        if go == "end":
            return f"{{% end{opened.pop()} %}}"
        if go.startswith(("if", "range")):
            opened.append("for" if go.startswith("range") else "if")
        if branch := re.fullmatch(r'(if|else if) eq \.Role "(\w+)"', go):
            return f"{{% {branch[1].replace('else if', 'elif')} message.role == '{branch[2]}' %}}"
        return JINJA[go]

    return re.sub(r"\{\{ (.*?) \}\}", word, template)


def written(template, messages):
    environment = Environment(keep_trailing_newline=True)  # no page is made
    return environment.from_string(as_jinja(template)).render(messages=messages)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_writes_the_same(name):
    tokenizer = FAMILIES[name].tokenizer()
    turns = turns_of(tokenizer)
    template = go_template(turns, tokenizer.bos_token or "")
    systems = [SYSTEM] if "system" in turns.before else []
    for messages in ([USER], [*systems, USER], [*systems, USER, ASSISTANT, USER]):
        expected = render(tokenizer, messages, generate=True)
        if name != "llama2":  # which begins every turn so; of the others Ollama adds it
            expected = expected.removeprefix(tokenizer.bos_token or "")
        assert written(template, messages) == expected


def test_stop_tokens_and_context_are_given():
    tokenizer = FAMILIES["llama3"].tokenizer()
    text, notes = modelfile(tokenizer, "model-Q8_0.gguf", 4096)
    assert text.startswith("FROM ./model-Q8_0.gguf\nTEMPLATE ") and not notes
    ends = tokenizer.convert_ids_to_tokens(turn_ends(tokenizer))
    assert "<|eot_id|>" in ends and all(f'PARAMETER stop "{end}"\n' in text for end in ends)
    assert text.endswith("PARAMETER num_ctx 4096\n")


def test_a_template_that_is_more_than_turns_is_left_to_ollama():
    tokenizer = FAMILIES["qwen"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
    text, notes = modelfile(tokenizer, "model.gguf", None)
    assert "TEMPLATE" not in text and "leaves it to Ollama" in notes[0]
    tokenizer.chat_template = None
    text, notes = modelfile(tokenizer, "model.gguf", None)
    assert 'TEMPLATE """{{ .Prompt }}"""' in text and "base model" in notes[0]

"""Chat templates end: whatever a template does, in Python or inside one call of C, it is bounded. Those of
models render as in transformers.
"""

import signal

import pytest
from transformers.utils import chat_template_utils

from llmlab.data import templates
from llmlab.data.rendering import render
from llmlab.data.templates import TooLong, at_most
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from tests.fuzzing import HOSTILE_TEMPLATES
from tests.templates import FAMILIES

TALK = [{"role": "user", "content": "Who is Ahab?"}, {"role": "assistant", "content": "The captain."}]
TALKS = [
    TALK,
    TALK[:1],
    [*TALK, {"role": "user", "content": " 100 % sure?\n{{ x }}\n"}],
    [{"role": "system", "content": "Be brief.\t"}, *TALK],
    [*TALK, *TALK, *TALK],
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "ä & <b>",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
# what templates of models do beside the plain formats: filters, methods, macros, namespaces, loops, JSON,
# dates
RICH = """
{%- macro part(text, depth=2) -%}{{ '[' ~ text|trim ~ ']' }}{{ caller() if caller else '' }}{%- endmacro -%}
{%- set ns = namespace(last=-1, seen=[], n=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}
{%- set ns.seen = ns.seen + [m.content] -%}
{%- endif -%}{%- endfor -%}
{%- for m in messages[ns.last:] if m.content is string -%}
{%- if loop.index > 40 %}{% break %}{% endif -%}
{{ part(m['content'].split('.')[-1].lstrip('\\n')) }}{{ m.content|replace('a', '<a>')|upper|indent(2) }}
{{ m.role.title().center(12) }}
{%- generation %}{{ m.content }}{% endgeneration -%}
{%- endfor -%}
{{ ns.seen|join(', ') }} {{ ns.seen|length * 2 ** 3 + 1 }} {{ '%s-%05d' % (messages|length, 7) }}
{{ '{:>5}|{a!r}'.format(3, a='x') }}
{{ (messages|map(attribute='role')|list)|tojson(indent=2) }} {{ {'a': [1, (2, 3)], 'b': none}|tojson }}
{{ ('a', 'b')|join }}
{%- if tools %}{% for t in tools %}{{ t.function|tojson }}{{ t.function.items()|list|length }}{% endfor %}
{% endif -%}
{% for a, b in [(1, 2), (3, 4)] %}{{ a ~ b ~ loop.cycle('x', 'y') }}{% endfor %}{{ 'a' * 3 }}
{{ range(3)|list }}{{ 3.5|round(1) }}
{{- messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages[0].missing|default('none') }}
{{ dict(a=1)|items|list }}
{{- ns.seen|batch(2, '-')|list }}{{ 'x'.join(['a', 'b']) }}{{ 'abc'[::-1] }}{{ 'a\\tb'.expandtabs(4) }}
{{ [3, 1]|sort|sum }}
{%- call part('z') %}inside{% endcall %}{{ 'a,b'.split(',')|map('upper')|join(';') }}
{{ raise_exception('no') if false else '' }}
"""


def theirs(tokenizer, talk, **options):
    """What transformers renders; the text of its error where it refuses."""
    try:
        return tokenizer.apply_chat_template(talk, tokenize=False, **options)
    except Exception as error:
        return str(error)


def ours(tokenizer, talk, generate):
    try:
        return render(tokenizer, talk, generate=generate)
    except LabError as error:
        return str(error)


@pytest.mark.parametrize("family", [*FAMILIES, "rich", "chatml"])
def test_templates_of_models_render_as_in_transformers(family):
    tokenizer = FAMILIES[family].tokenizer() if family in FAMILIES else load_tokenizer("byte")
    if family == "rich":
        tokenizer.chat_template = RICH
    elif family == "chatml":
        tokenizer.chat_template = {"default": FAMILIES["qwen"].template, "tool_use": RICH}
    for talk in TALKS:
        for generate in (False, True):
            expected = theirs(tokenizer, talk, add_generation_prompt=generate)
            made = ours(tokenizer, talk, generate)
            assert made == expected or made == f"the chat template refuses it: {expected}"
            with_tools = [{**talk[0], "tools": TOOLS}, *talk[1:]]
            expected = theirs(tokenizer, talk, add_generation_prompt=generate, tools=TOOLS)
            made = ours(tokenizer, with_tools, generate)
            assert made == expected or made == f"the chat template refuses it: {expected}"


def test_reasoning_and_missing_parts_are_given_as_transformers_gives_them():
    tokenizer = load_tokenizer("byte")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m|dictsort }}{% endfor %}{{ bos_token }}{{ eos_token }}{{ documents }}"
    )
    talk = [
        {"role": "user", "content": "x", "name": None},
        {"role": "assistant", "content": "y", "reasoning": "z"},
    ]
    assert render(tokenizer, talk) == theirs(tokenizer, talk) and "thinking" in render(tokenizer, talk)


@pytest.mark.parametrize("number", range(len(HOSTILE_TEMPLATES)))
def test_hostile_templates_are_stopped(monkeypatch, number):
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    tokenizer = load_tokenizer("byte")
    tokenizer.chat_template = HOSTILE_TEMPLATES[number]
    with pytest.raises(
        LabError, match=r"this chat template (was stopped|ran for|cannot render)|the chat template refuses it"
    ) as caught:
        render(tokenizer, TALK)
    assert "\n" not in str(caught.value)


def test_long_conversations_are_no_bombs():
    tokenizer = load_tokenizer("byte")
    tokenizer.chat_template = RICH
    talk = [{"role": "user", "content": "the whale, " * 200_000}, TALK[1]]
    assert render(tokenizer, talk) == theirs(tokenizer, talk)


def test_the_timer_is_put_back():
    before = signal.getsignal(signal.SIGVTALRM)
    with at_most(5):
        assert 0 < signal.getitimer(signal.ITIMER_VIRTUAL)[0] <= 5.1  # of a clock that ticks
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0) and signal.getsignal(signal.SIGVTALRM) == before
    with pytest.raises(TooLong), at_most(0.01):
        while True:
            pass


def test_what_is_taken_from_transformers_is_there():
    theirs = chat_template_utils._compile_jinja_template("").environment
    assert {"tojson", "join", "center"} <= set(theirs.filters) and {"raise_exception", "strftime_now"} <= set(
        theirs.globals
    )
    assert theirs.trim_blocks and theirs.lstrip_blocks and len(theirs.extensions) == 2
    assert chat_template_utils._plain_template_data({"a": [1, None]}) == {"a": [1, None]}
    assert chat_template_utils._alias_reasoning_fields([{"reasoning": "x"}])[0]["reasoning_content"] == "x"

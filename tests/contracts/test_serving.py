"""What the server takes from `transformers.cli.serving.utils`: the parts of an answer, told apart."""

import json

import pytest

from llmlab.data.tokenizer import train_tokenizer
from llmlab.serving.parsing import AnswerParser, whole_message
from tests.conftest import small_model

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": [4]}}\n</tool_call>'
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
]


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer([], 260)
    made.chat_template = "<|im_start|>assistant\n {# <tool_call> <think> #}"
    return made


def parsed(tokenizer, text, step, prompt="<|im_start|>assistant\n"):
    ids = tokenizer(prompt)["input_ids"]
    parser = AnswerParser(tokenizer, small_model(), ids, TOOLS)
    assert parser.active
    deltas = [d for at in range(0, len(text), step) for d in parser.deltas(text[at : at + step])]
    return whole_message([*deltas, *parser.rest()]), parser


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_tool_calls_and_thoughts(tokenizer, step):
    message, parser = parsed(
        tokenizer, f"<think>\nI add.\n</think>\n\nLet me see.\n{CALL}\n{CALL}<|im_end|>", step
    )
    assert [call["function"]["name"] for call in message["tool_calls"]] == [
        "add",
        "add",
    ] and parser.calls == 2
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": 3, "b": [4]}
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert message["reasoning_content"].strip() == "I add." and message["content"].strip() == "Let me see."


def test_plain_text_and_a_call_that_was_cut(tokenizer):
    assert parsed(tokenizer, "Seven.<|im_end|>", 3)[0] == {"role": "assistant", "content": "Seven."}
    message, parser = parsed(tokenizer, 'So: <tool_call>\n{"name": "a', 4)
    assert message["content"].strip() == "So:" and not parser.calls


def test_other_models_say_text_alone(tokenizer):
    tokenizer = train_tokenizer([], 260)
    parser = AnswerParser(tokenizer, small_model(), [1])
    assert not parser.active and parser.deltas("<tool_call>") == [{"content": "<tool_call>"}]
    assert parser.rest() == []

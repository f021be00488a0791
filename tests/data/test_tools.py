"""Tool calls, tools, names, reasoning and pictures:
rendered and learned where the chat template knows them, else refused.
"""

import json

import pytest

from llmlab.config import GRPOConfig, SFTConfig
from llmlab.data.conversations import sft_data
from llmlab.data.prompts import prompts_data
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError

HERMES = (  # Qwen's and Hermes' way with tools, reasoning as in Qwen 3
    "{% if tools %}{{ '<|im_start|>system\\n<tools>' }}{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}{{ '</tools><|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + ({'name': call.function.name, 'arguments': "
    "call.function.arguments} | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Nantucket"}}}
ROW = {
    "messages": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "storm"},
        {"role": "assistant", "content": "A storm.", "reasoning_content": "The glass falls."},
    ],
    "tools": [TOOL],
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(tokenizer, path, **source):
    return sft_data(
        SFTConfig(datasets=[{"name": path, **source}], eval_fraction=0, packing=False, max_length=2000),
        tokenizer,
    )


@pytest.fixture
def hermes():
    tokenizer = load_tokenizer("byte")
    tokenizer.chat_template = HERMES
    return tokenizer


@pytest.mark.parametrize("arguments", [{"place": "Nantucket"}, '{"place": "Nantucket"}'])
def test_calls_and_reasoning_are_learned_and_tools_are_read(hermes, tmp_path, arguments):
    row = json.loads(json.dumps(ROW))
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
    data = prepared(hermes, write(tmp_path / "a.jsonl", row, row)).train[0]
    learned = hermes.decode([label for label in data["labels"] if label >= 0])
    assert learned == (
        '<tool_call>{"name": "weather", "arguments": {"place": "Nantucket"}}</tool_call><|im_end|>'
        "<think>The glass falls.</think>A storm.<|im_end|>"
    )
    whole = hermes.decode(data["input_ids"])
    assert '"name": "weather", "parameters"' in whole.split("</tools>")[0] and "storm" in whole


def test_rows_of_one_table_lend_each_other_no_arguments(hermes, tmp_path):
    other = {"id": "2", "type": "function", "function": {"name": "sail", "arguments": {"knots": 9}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Go"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
        }
        for call in (CALL, other)
    ]
    train = prepared(hermes, write(tmp_path / "a.jsonl", *rows)).train
    texts = sorted(hermes.decode([label for label in row["labels"] if label >= 0]) for row in train)
    assert ['{"knots": 9}' in texts[0], '{"place": "Nantucket"}' in texts[1], "null" in "".join(texts)] == [
        True,
        True,
        False,
    ]


def turns(**last):
    return {
        "messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes", **last}]
    }


UNKNOWN = {
    "tool calls": (
        turns(content="", tool_calls=[CALL]),
        "row 1: the chat template leaves out the `tool_calls` of turn 2",
    ),
    "tools": (
        {**turns(), "tools": [TOOL]},
        "row 1: the chat template leaves out the `tools` of the conversation",
    ),
    "reasoning": (
        turns(reasoning_content="Hm"),
        "row 1: the chat template leaves out the `reasoning_content` of turn 2",
    ),
    "name": (turns(name="Ishmael"), "row 1: the chat template leaves out the `name` of turn 2"),
    "completion": (
        {"prompt": "Rain?", "completion": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        "row 1: the chat template leaves out the `tool_calls` of turn 2",
    ),
    "picture": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "url": "x.png"}, {"type": "text", "text": "What?"}],
                },
                {"role": "assistant", "content": "A whale"},
            ]
        },
        "row 1: a turn of 'user' holds a part of type 'image'",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_the_template_does_not_know_is_refused_with_row_and_reason(tmp_path, case):
    row, reason = UNKNOWN[case]
    tokenizer = load_tokenizer("byte")
    path = write(tmp_path / "a.jsonl", row, *([turns()] if case != "completion" else []))
    with pytest.raises(LabError, match=reason):
        prepared(tokenizer, path)
    if case != "completion":
        assert len(prepared(tokenizer, path, bad_rows="drop").train) == 1


def test_prompts_with_tools_are_refused_where_answers_are_generated(hermes, tmp_path):
    row = {"prompt": [{"role": "user", "content": "Rain?"}], "answer": "yes", "tools": [TOOL]}
    with pytest.raises(LabError, match="row 1: the prompt holds `tools`: grpo answers text alone"):
        prompts_data(GRPOConfig(datasets=[write(tmp_path / "a.jsonl", row)], eval_fraction=0), hermes)


def test_answers_marked_bad_are_not_learned_as_good(tmp_path):
    rows = [
        {"prompt": "Who?", "completion": "Ahab", "label": True},
        {"prompt": "Who?", "completion": "Nobody", "label": False},
    ]
    with pytest.raises(LabError, match=r"answers marked good or bad \(`label` is true or false: KTO rows\)"):
        prepared(load_tokenizer("byte"), write(tmp_path / "a.jsonl", *rows))

"""A model that was taught one tool call, called through OpenAI's client."""

import json

import pytest
import torch

from llmlab.data.tokenizer import train_tokenizer
from tests.conftest import small_model
from tests.serving.conftest import serving

TEMPLATE = """{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}
<|im_start|>{{ m.role }}
{{ m.reasoning_content }}{{ m.content }}
{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
ASKED = [{"role": "user", "content": "3+4?"}]
SAID = '<think>\nSum.\n</think>\n<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call><|im_end|>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tools") / "model"
    tokenizer = train_tokenizer([], 260)
    tokenizer.chat_template = TEMPLATE
    model = small_model(vocab_size=260, d_model=64, d_ff=128, max_seq_len=384).train()
    prompt = tokenizer.apply_chat_template(ASKED, tools=[ADD], add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer(prompt + SAID)["input_ids"]])
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt)["input_ids"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.03:
            break
    assert loss < 0.05
    model.eval().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.mark.slow
def test_a_call_comes_as_a_call(folder):
    with serving(folder) as server:
        options = dict(model="lab", messages=ASKED, tools=[ADD], max_tokens=120)
        choice = server.client().chat.completions.create(**options).choices[0]
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and call.function.name == "add"
        assert json.loads(call.function.arguments) == {"a": 3}
        assert choice.message.reasoning_content.strip() == "Sum." and not choice.message.content.strip()
        chunks = list(server.client().chat.completions.create(**options, stream=True))
        [streamed] = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        assert streamed.index == 0 and streamed.id != call.id
        assert streamed.function.model_dump() == call.function.model_dump()
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert "".join(c.choices[0].delta.content or "" for c in chunks).strip() == ""
        without = server.client().chat.completions.create(**options, tool_choice="none").choices[0]
        assert without.message.content is not None, "as if there were no tools"
        messages = [*ASKED, choice.message.model_dump(exclude_none=True), {"role": "tool", "content": "7"}]
        answered = server.client().chat.completions.create(**{**options, "messages": messages})
        assert answered.choices[0].finish_reason in ("stop", "length", "tool_calls"), "the call is read again"

"""Rendering and masking are inverses: what is learned is what the assistant says,
in the templates of the known families.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.rendering import IGNORE_INDEX, tokenize_conversation, tokenize_pair
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError

ENDS = {  # template, the end of the assistant's turn
    "chatml": (None, "<|im_end|>"),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|endoftext|>",
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "<|endoftext|>",
    ),
}
words = st.text(st.sampled_from("abcABC .,!?é’\n1"), min_size=1, max_size=30).map(str.strip).filter(bool)


@pytest.fixture(scope="module", params=ENDS)
def dressed(request, tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    template, end = ENDS[request.param]
    if template:
        tokenizer.chat_template = template
        tokenizer.bos_token = tokenizer.bos_token or "<|endoftext|>"
        tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    return tokenizer, end


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_what_is_learned_is_what_the_assistant_says(dressed, turns):
    tokenizer, end = dressed
    messages = [
        message
        for asked, said in turns
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
    ]
    made = tokenize_conversation(tokenizer, messages, "assistant")
    learned = [label for label in made["labels"] if label != IGNORE_INDEX]
    assert [part.strip() for part in tokenizer.decode(learned).split(end)[:-1]] == [said for _, said in turns]
    assert (
        made["input_ids"]
        == tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)[
            "input_ids"
        ]
    )


@settings(max_examples=40, deadline=None)
@given(asked=words, chosen=words, rejected=words)
def test_answers_of_pairs_are_what_is_said(dressed, asked, chosen, rejected):
    tokenizer, end = dressed
    pair = tokenize_pair(tokenizer, [{"role": "user", "content": asked}], chosen, rejected, 10_000, 5_000)
    for name, said in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        assert tokenizer.decode(pair[name]).removesuffix(end).strip() == said
    assert asked in tokenizer.decode(pair["prompt_ids"]) and not pair["cut"]


def test_an_answer_whose_thoughts_the_template_hides_later_is_not_learned_without_them(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] if not loop.last else "
        "m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    talk = [("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in talk]
    made = tokenize_conversation(tokenizer, messages, "assistant")
    whole = tokenizer.decode(made["input_ids"])
    assert whole.startswith("<|user|>a|<|assistant|>b|<|user|>c|<|assistant|>d|")
    assert tokenizer.decode([label for label in made["labels"] if label != IGNORE_INDEX]).startswith("d|")


def test_an_answer_that_begins_otherwise_than_it_is_asked_for_is_refused(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(LabError, match='set `chat_template` to "chatml" or `loss_on` to "all"'):
        tokenize_conversation(tokenizer, messages, "assistant")

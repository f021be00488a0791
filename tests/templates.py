"""The chat formats of the most used model families, written down from their documentation,
with tiny byte-level tokenizers.
"""

from dataclasses import dataclass

from llmlab.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Family:
    """A family's format.

    Attributes:
        template: as its models carry it, without what concerns tools and pictures.
        end: the token behind an answer; None where the format has none.
        eos: the tokenizer's end of text.
        bos: its beginning of text.
        others: further special tokens.
    """

    template: str
    end: str | None
    eos: str
    bos: str | None = None
    others: tuple[str, ...] = ()

    def tokenizer(self):
        """Returns one token per byte, and the family's special tokens."""
        tokenizer = load_tokenizer("byte")
        special = [token for token in (*self.others, self.end, self.eos, self.bos) if token]
        tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(special))})
        tokenizer.eos_token = self.eos
        tokenizer.bos_token = self.bos
        tokenizer.chat_template = self.template
        return tokenizer


FAMILIES = {
    "qwen": Family(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
        "<|endoftext|>",
        None,
        ("<|im_start|>",),
    ),
    "llama2": Family(
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
        "{% endif %}{% endfor %}",
        "</s>",
        "</s>",
        "<s>",
    ),
    "llama3": Family(
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n'"
        " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<|eot_id|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
        "{% endif %}"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>",
        "<eos>",
        "<bos>",
        ("<start_of_turn>",),
    ),
    "phi3": Family(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + "
        "'<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
        "<|endoftext|>",
        "<s>",
        ("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "mistral": Family(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        "</s>",
        "<s>",
    ),
    "zephyr": Family(
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token "
        "}}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        "</s>",
        "</s>",
        "<s>",
    ),
    "deepseek": Family(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<｜User｜>' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + "
        "'<｜end▁of▁sentence｜>' }}"
        "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<｜Assistant｜>' }}{% endif %}",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
    ),
    "command-r": Family(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + message['content'].strip() + "
        "'<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        "<|END_OF_TURN_TOKEN|>",
        "<EOS_TOKEN>",
        "<BOS_TOKEN>",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ),
    "falcon": Family(
        "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
        "{{ {'user': 'User', 'assistant': 'Falcon', 'system': 'System'}[message['role']] + ': ' + "
        "message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\nFalcon:' }}{% endif %}",
        None,
        "<|endoftext|>",
    ),
    "tulu": Family(
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<|user|>\\n' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
        "{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}"
        "{% else %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}",
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "glm": Family(
        "{{ '[gMASK]<sop>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
        "message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        "<|user|>",
        "<|endoftext|>",
        None,
        ("[gMASK]", "<sop>", "<|assistant|>", "<|system|>"),
    ),
}

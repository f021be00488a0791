"""The chat formats of four model families with tools and reasoning: `chat_templates/`, written down from the
templates that their models carry; built-in tools and pictures are left out.
"""

from pathlib import Path

from tests.templates import Family

TEMPLATES = Path(__file__).parent / "chat_templates"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")


def template(name):
    return (TEMPLATES / f"{name}.jinja").read_text().removesuffix("\n")


FAMILIES = {
    "qwen2.5": Family(template("qwen2.5"), "<|im_end|>", "<|endoftext|>", None, ("<|im_start|>",)),
    "qwen3": Family(template("qwen3"), "<|im_end|>", "<|endoftext|>", None, ("<|im_start|>",)),
    "llama3.1": Family(template("llama3.1"), "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>", HEADERS),
    "mistral": Family(template("mistral"), "</s>", "</s>", "<s>"),
}

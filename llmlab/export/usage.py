"""The lines that load a model where it is on the hub, for a card and for what a push says at its end."""

from __future__ import annotations

import re

from llmlab.export.facts import ModelFacts, is_hub_id
from llmlab.export.markdown import escape, fenced

CHAT = """\
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
CONTINUE = """\
inputs = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""
SCORE = """\
inputs = tokenizer("A question and its answer", return_tensors="pt")
print(model(**inputs).logits[0].item())  # higher is better"""


def repository(facts: ModelFacts) -> str:
    """Returns a placeholder for where a model will be on the hub."""
    name = re.sub(r"[^\w.-]+", "-", facts.name, flags=re.ASCII).strip("-.")[:90]
    return f"OWNER/{name or 'model'}"


def usage(facts: ModelFacts, repo_id: str) -> str:
    """Returns how a model is used, as Markdown."""
    if facts.form == "gguf":
        lines = f"llama-cli -hf {repo_id}\nllmlab chat {facts.where.name}"
        return "With llama.cpp, or with llmlab from a downloaded file:\n\n" + fenced(lines)
    if facts.form == "lab":
        return (
            "transformers alone does not load it: its architecture is llmlab's. With llmlab installed:\n\n"
            + fenced(f"llmlab chat {repo_id}" if not facts.scores else f"llmlab info {repo_id}")
            + "\n\n"
            + fenced(_program(facts, repo_id, ["import llmlab.models"], ""), "python")
        )
    if facts.form == "adapter":
        return _adapter_usage(facts, repo_id)
    note, argument = "", ""
    if facts.form == "code":
        note = "It brings its modelling code, which transformers runs only with `trust_remote_code=True`:\n\n"
        argument = ", trust_remote_code=True"
    return note + fenced(_program(facts, repo_id, [], argument), "python")


def _program(facts: ModelFacts, repo_id: str, imports: list[str], argument: str) -> str:
    auto = "AutoModelForSequenceClassification" if facts.scores else "AutoModelForCausalLM"
    return "\n".join(
        [
            *imports,
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}"{argument})',
            f'model = {auto}.from_pretrained("{repo_id}"{argument})',
            SCORE if facts.scores else CHAT if facts.chats else CONTINUE,
        ]
    )


def _adapter_usage(facts: ModelFacts, repo_id: str) -> str:
    auto = "AutoPeftModelForSequenceClassification" if facts.scores else "AutoPeftModelForCausalLM"
    program = "\n".join(
        [
            f"from peft import {auto}",
            "from transformers import AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
            f'model = {auto}.from_pretrained("{repo_id}")  # loads the base, too',
            SCORE if facts.scores else CHAT if facts.chats else CONTINUE,
        ]
    )
    if is_hub_id(facts.base):
        return fenced(program, "python")
    return (
        f"Its base, {escape(facts.base.rstrip('/').split('/')[-1])}, is a model on the machine where it was"
        " trained; the adapter is of no use without it. `llmlab merge` makes a whole model of both.\n\n"
        + fenced(program, "python")
    )

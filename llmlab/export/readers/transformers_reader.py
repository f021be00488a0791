"""Reads an exported folder by transformers alone, in a process where llmlab cannot be imported.

    python -I transformers_reader.py JOBS.json

Each job names the folder, the prompts and where the answers go (see `llmlab.export.selftest`).
"""

import importlib.abc
import json
import sys
from typing import Any


class _NoLab(importlib.abc.MetaPathFinder):
    """Makes llmlab a package that is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuses the lab; leaves every other name to the finders behind this one."""
        if name.partition(".")[0] in ("llmlab", "llmlab_cli"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(job: dict[str, Any]) -> None:
    """Answers the job's prompts."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(job["threads"])
    trust = {"trust_remote_code": job["own_code"]}
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], **trust)
    auto = AutoModelForSequenceClassification if job["use"] == "score" else AutoModelForCausalLM
    model = auto.from_pretrained(job["folder"], dtype=getattr(torch, job["dtype"]), **trust).eval()
    answers, values = [], {}
    for index, prompt in enumerate(job["prompts"]):
        ids = tokenizer(prompt["text"], add_special_tokens=prompt["special"])["input_ids"]
        rendered = None
        if prompt["messages"]:
            rendered = tokenizer.apply_chat_template(
                prompt["messages"], tokenize=False, add_generation_prompt=True
            )
        inputs = torch.tensor([prompt["ids"]])
        tokens = []
        with torch.no_grad():
            if job["use"] == "score":
                logits = model(inputs, attention_mask=torch.ones_like(inputs)).logits
            else:
                tokens = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=job["new_tokens"],
                    do_sample=False,
                )[0, inputs.shape[1] :].tolist()
                read = torch.tensor([prompt["ids"] + prompt["tokens"]])
                logits = model(read, attention_mask=torch.ones_like(read)).logits[0, -job["compared"] :]
        values[str(index)] = logits.float().contiguous()
        answers.append({"ids": ids, "tokens": tokens, "rendered": rendered})
    save_file(values, job["values"])
    with open(job["answers"], "w", encoding="utf-8") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    sys.meta_path.insert(0, _NoLab())
    with open(sys.argv[1], encoding="utf-8") as file:
        for job in json.load(file):
            main(job)

"""Reads a GGUF file by llama.cpp (the package xllamacpp).

    python -I llama_cpp_reader.py JOBS.json

Each job names the file, the prompts and where the answers go (see `llmlab.export.selftest`). Keys and values
are kept in fp32 and flash attention is off, so that what is compared is the file and not a faster kernel.
"""

import json
import sys
import urllib.request
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Answers the job's prompts."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = job["folder"]
    parameters.n_parallel, parameters.n_gpu_layers, parameters.warmup = 1, 0, False
    parameters.n_ctx = max(len(prompt["ids"]) for prompt in job["prompts"]) + job["new_tokens"] + 8
    parameters.cpuparams.n_threads = job["threads"]
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer

    answers = []
    for prompt in job["prompts"]:
        asked = {"content": prompt["text"], "add_special": prompt["special"], "parse_special": True}
        ids = post("/tokenize", asked)["tokens"]
        rendered = None
        if prompt["messages"]:
            rendered = post("/apply-template", {"messages": prompt["messages"]})["prompt"]
        sampling = {
            "temperature": 0,
            "samplers": ["temperature"],
            "return_tokens": True,
            "cache_prompt": True,
        }
        tokens = post("/completion", {"prompt": prompt["ids"], "n_predict": job["new_tokens"], **sampling})
        log_probs = []
        for position in range(len(prompt["tokens"])):
            read = prompt["ids"] + prompt["tokens"][:position]
            asked = {"prompt": read, "n_predict": 1, "n_probs": job["most_likely"], **sampling}
            # nothing where the next token is a part of a character
            likely = post("/completion", asked).get("completion_probabilities") or [{"top_logprobs": []}]
            log_probs.append([[entry["id"], entry["logprob"]] for entry in likely[0]["top_logprobs"]])
        answers.append({"ids": ids, "tokens": tokens["tokens"], "rendered": rendered, "log_probs": log_probs})
    with open(job["answers"], "w", encoding="utf-8") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        for job in json.load(file):
            main(job)

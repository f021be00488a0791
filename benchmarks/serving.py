"""A server under many requests: none may be lost, and each answer is that of `llmlab generate`.

    python benchmarks/serving.py MODEL --requests 200 --at-once 8

Starts `llmlab serve`, asks with OpenAI's client (every other answer streamed, one stream in ten cancelled and
asked again), then answers the same prompts with `llmlab generate --input` and compares. Exits with 1 where
something is lost or differs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

WORDS = ("Add 3 and 4.", "Who is Ahab?", "Name a colour.", "What is a whale?", "Say hello.", "Count to five.")
GREEDY = ["--set", "temperature=0"]


def prompts(count):
    return [f"{WORDS[i % len(WORDS)]} ({i})" for i in range(count)]


def served(model, tokens, texts, at_once):
    """The answers in order, seconds of each, seconds of all, and what failed."""
    command = [sys.executable, "-m", "llmlab", "serve", model, "--port", "0", *GREEDY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    client = openai.OpenAI(base_url=address, api_key=os.environ.get("LLMLAB_API_KEY", "none"), max_retries=0)
    name = client.models.list().data[0].id
    failures = []

    def ask(job):
        number, text = job
        began = time.perf_counter()
        said = {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        try:
            if number % 10 == 1:
                with client.chat.completions.create(**said, stream=True) as cancelled:
                    next(iter(cancelled))
            if number % 2:
                chunks = client.chat.completions.create(**said, stream=True)
                answer = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
            else:
                answer = client.chat.completions.create(**said).choices[0].message.content
        except openai.APIError as error:
            failures.append(f"{number}: {error}")
            answer = None
        return answer, time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(ask, enumerate(texts)))
    took = time.perf_counter() - began
    process.send_signal(2)
    code = process.wait(60)
    return [text for text, _ in answers], [seconds for _, seconds in answers], took, failures, code


def generated(model, tokens, texts):
    """The answers of `llmlab generate`, and the seconds of the command."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "prompts.jsonl"), Path(folder, "answers.jsonl")
        source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        began = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "llmlab", "generate", model),
                *("--input", str(source), "--output", str(target)),
                *(*GREEDY, "--set", f"max_new_tokens={tokens}"),
            ],
            check=True,
        )
        took = time.perf_counter() - began
        return [json.loads(line)["completion"] for line in target.read_text().splitlines()], took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="with a chat template")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    texts = prompts(given.requests)
    said, seconds, took, failures, code = served(given.model, given.tokens, texts, given.at_once)
    wanted, alone = generated(given.model, given.tokens, texts)
    differing = [i for i, (one, other) in enumerate(zip(said, wanted, strict=True)) if one != other]
    print(
        f"{given.requests} requests, {given.at_once} at a time: {took:.1f} s, {len(said) / took:.1f} a second"
    )
    print(f"an answer: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")
    print(f"`llmlab generate --input`: {alone:.1f} s with loading")
    print(f"lost: {len(failures)}; different from `llmlab generate`: {len(differing)}; exit code {code}")
    for line in failures[:5]:
        print(line)
    for i in differing[:5]:
        print(f"{i}: {said[i]!r} is not {wanted[i]!r}")
    sys.exit(bool(failures or differing or code != 130))


if __name__ == "__main__":
    main()

"""What a person agreed to by typing its name: code of their own or of a model's repository.
Secrets stay out of files.
"""

from __future__ import annotations

import os
import re

TRUSTED: set[str] = (
    set()
)  # `module:function` of rewards, `owner/name` or folder of models with code of their own
SECRETS = (  # environment variables that hold nothing but a secret
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "WANDB_API_KEY",
    "GITHUB_TOKEN",
    "GH_TOKEN",
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "COMET_API_KEY",
    "KAGGLE_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "AZURE_CLIENT_SECRET",
    "GITLAB_TOKEN",
    "REPLICATE_API_TOKEN",
    "LLMLAB_API_KEY",
)
SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|AKIA[0-9A-Z]{16}|sk-[\w-]{32,})\b"
)
NAMED: dict[str, str] = {}  # secrets that were read from elsewhere than the environment
SHORTEST = 8  # characters; shorter values would be found in any text


def keep_secret(name: str, value: str) -> None:
    """Has a secret that does not stand in the environment (a token of a `.env` file) redacted, too."""
    NAMED[name] = value


def redact(text: str) -> str:
    """Returns a text without secrets: values of known variables (HF_TOKEN, WANDB_API_KEY ...),
    and what has their shape.
    """
    for name, value in _secrets().items():
        text = text.replace(value, f"<{name}>")
    return SHAPES.sub("<secret>", text)


def secret_in(text: str) -> str:
    """Returns the name of the variable whose secret value is in a text,
    "a secret" for what has the shape of one, else "".
    """
    name_of_secret = next((f"the value of {name}" for name, value in _secrets().items() if value in text), "")
    return name_of_secret or ("a secret" if SHAPES.search(text) else "")


def _secrets() -> dict[str, str]:
    values = {**NAMED, **{name: value for name in SECRETS if (value := os.environ.get(name, ""))}}
    return {name: value for name, value in values.items() if len(value) >= SHORTEST and os.sep not in value}

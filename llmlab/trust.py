"""What a person agreed to by typing its name: code of their own or of a model's repository. Secrets stay out of files."""

from __future__ import annotations

import os
import re

TRUSTED: set[str] = set()  # `module:function` of rewards, `owner/name` or folder of models with code of their own
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # characters; shorter values would be found in any text


def redact(text: str) -> str:
    """Returns a text with the values of secret environment variables (HF_TOKEN, WANDB_API_KEY ...) left out."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET.search(name):
            text = text.replace(value, f"<{name}>")
    return text

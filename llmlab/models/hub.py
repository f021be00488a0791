"""What the Hugging Face Hub has, asked with one short request; nothing is downloaded."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Literal

from llmlab.errors import LabError

Repository = Literal["model", "dataset"]
ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
TIMEOUT = 5.0  # seconds until the hub counts as out of reach
# ids without an owner, from before there were owners; whatever else has none is no id
WITHOUT_OWNER = re.compile(
    r"(distil)?gpt2(-medium|-large|-xl)?|openai-gpt|t5-(small|base|large|3b|11b)|(distil|xlm-)?roberta-\w+|ctrl|transfo-xl-wt103"
    r"|(distil)?bert-[\w-]+|albert-[\w-]+|xlnet-[\w-]+|camembert-base|xlm-[\w-]+"
)


class HubAnswer(Enum):
    """What is known of a hub id."""

    DOWNLOADED = "it was downloaded before"
    FOUND = "the hub has it"
    OFFLINE = "the hub was not asked"
    UNREACHABLE = "the hub did not answer"

    @property
    def is_sure(self) -> bool:
        """Whether there is such a repository."""
        return self in (HubAnswer.DOWNLOADED, HubAnswer.FOUND)


def offline() -> bool:
    """Returns whether the environment forbids to ask the hub."""
    values = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "ON", "YES", "TRUE") for value in values)


def downloaded(kind: Repository) -> list[str]:
    """Returns the ids of the models or datasets that are in the hub's cache on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = sorted(Path(HF_HUB_CACHE).glob(f"{kind}s--*"))
    return [folder.name.split("--", 1)[1].replace("--", "/") for folder in found]


def look_up(
    name: str, kind: Repository, *, exists: bool = False, ask: bool = True
) -> tuple[HubAnswer, Path | None]:
    """Returns what is known of a hub id, and where it was downloaded to.

    Args:
        name: the id.
        kind: of the repository.
        exists: it is known from the catalogue that it exists: a name without an owner is not refused.
        ask: the hub; without, only what was downloaded before is looked at.

    Raises:
        LabError: when the hub has no such repository, or the name cannot be an id.
    """
    if not ID.fullmatch(name):
        raise LabError(
            f"there is no such {kind}",
            where=name,
            remedy="no file or folder here has this name, and no hub id looks like this",
        )
    if folder := _downloaded(name, kind):
        return HubAnswer.DOWNLOADED, folder
    answer = HubAnswer.OFFLINE if not ask or offline() else _ask(name, kind)
    if not answer.is_sure and "/" not in name and not exists and not WITHOUT_OWNER.fullmatch(name):
        raise LabError(
            f"there is no such {kind}",
            where=name,
            remedy="no file or folder here has this name, and a hub id is owner/name",
        )
    return answer, None


def _downloaded(name: str, kind: Repository) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json", "tokenizer_config.json", "README.md"):
        cached = try_to_load_from_cache(name, file, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _ask(name: str, kind: Repository) -> HubAnswer:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
    except GatedRepoError:
        raise LabError(
            "is gated on the hub", where=name, remedy="accept its terms there, and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise LabError(
            f"the hub has no {kind} of this name",
            where=name,
            remedy="check the spelling; a private one needs HF_TOKEN",
        ) from None
    except (
        Exception
    ):  # of the client and its transport, in many kinds: no network, a proxy, a server in trouble
        return HubAnswer.UNREACHABLE
    return HubAnswer.FOUND

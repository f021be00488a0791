"""What was measured on a device, kept in the lab's cache folder: some files for each device, named by it.

`planning.speed` keeps there what the updates of runs took; `llmlab selftest` what it found, and which
attention kernel was the fastest. No torch.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.files import cache_root, read_object, write_text_atomically

SELFTEST = ".selftest.json"


@dataclass(frozen=True)
class System:
    """What a measurement holds for: another one of these, and it is not used.

    Attributes:
        device: its name, a processor's with its threads.
        torch: version.
        driver: version of the GPU's; "" where there is none, or it does not say.
    """

    device: str
    torch: str
    driver: str = ""


def device_file(device: str, ending: str) -> Path:
    """Returns the file of a device.

    Args:
        device: its name.
        ending: what is kept in it: ".jsonl" of speeds, `SELFTEST`.
    """
    return cache_root() / "speed" / f"{hashlib.sha256(device.encode()).hexdigest()[:16]}{ending}"


def kept_selftest(device: str) -> dict[str, Any]:
    """Returns what the selftest found on a device; nothing where it never ran, or the file is damaged."""
    try:
        return read_object(device_file(device, SELFTEST))
    except (OSError, ValueError):
        return {}


def keep_selftest(device: str, found: dict[str, Any]) -> Path | None:
    """Keeps what the selftest found; returns the file, None where it cannot be written."""
    file = device_file(device, SELFTEST)
    with suppress(LabError, OSError):
        write_text_atomically(file, json.dumps(found, indent=1) + "\n")
        return file
    return None


def kept_attention(system: System) -> str | None:
    """Returns transformers' name of the attention kernel that was the fastest here; None where it was not
    measured, or with another torch or driver.
    """
    kept = kept_selftest(system.device).get("attention")
    if not isinstance(kept, dict):
        return None
    measured = (kept.get("device"), kept.get("torch"), kept.get("driver"))
    kernel = kept.get("kernel")
    return kernel if measured == (system.device, system.torch, system.driver) and kernel else None

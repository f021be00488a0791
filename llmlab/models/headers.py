"""The shape of a model: by the headers of its files, else by its `config.json`, else by what ships of known
models. No weights, no torch.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.identity import base_of
from llmlab.models.known_models import has_experts, known_shape
from llmlab.models.shapes import ALIASES, EXPERTS_IN_WORDS, CheckpointShape, kept_in_training, shape_of_config
from llmlab.runs.folder import find_model

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
NUMBERED = re.compile(r"\.\d+\.")  # names of what belongs to a layer: its number is a part of them
GGUF = {
    "width": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "feed_forward": "feed_forward_length",
    "longest": "context_length",
}


def checkpoint_shape(name: str) -> CheckpointShape | None:
    """Returns the shape of a run, a folder, a GGUF file or a hub id; of an adapter its base's.

    A hub id need not be downloaded: its `config.json` in the cache is enough, and known models ship with the
    package. None where it does not say enough.
    """
    try:
        where = Path(find_model(name))
    except LabError:
        return known_shape(name)
    if not where.exists():
        where = _downloaded(name) or where
    try:
        stamp = where.stat().st_mtime_ns
    except OSError:
        return known_shape(name)
    return _shape(where, stamp) or known_shape(name)


def why_unknown(name: str) -> str:
    """Returns why the shape of a model is not known here, for a message; "" where nothing more is known."""
    if kind := has_experts(name):
        return EXPERTS_IN_WORDS.format(kind)
    try:
        where = Path(find_model(name))
        folder = where if where.exists() else _downloaded(name)
        if folder is not None and (folder / "config.json").exists():
            shape_of_config(read_object(folder / "config.json"), name)
    except LabError as error:
        return error.what
    except (OSError, ValueError):
        pass
    return ""


@functools.lru_cache(maxsize=16)  # a form asks with every key
def _shape(where: Path, stamp: int) -> CheckpointShape | None:
    try:
        if where.suffix == ".gguf":
            return _of_gguf(where)
        for _ in range(4):  # an adapter on heads on an adapter is as deep as it gets
            if not (base := base_of(where)):
                break
            where = Path(find_model(base))
            if where.suffix == ".gguf":
                return _of_gguf(where)
            where = where if where.exists() else _downloaded(base) or where
        return _of_folder(where)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, struct.error, LabError):
        return None


def tensor_sizes(folder: Path) -> dict[str, list[int]]:
    """Returns the shape of every tensor in a folder's safetensors files, from their headers."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= {name: tensor["shape"] for name, tensor in _header(path)[0].items()}
    return shapes


def whole(file: Path) -> bool:
    """Returns whether a safetensors file is as long as its header says."""
    try:
        tensors, start = _header(file)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        return file.stat().st_size == start + end
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        struct.error,
    ):
        return False


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Returns what a safetensors file says of its tensors, and where their data begins."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > LONGEST_HEADER:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict) or not all(isinstance(tensor, dict) for tensor in header.values()):
        raise ValueError("no safetensors file")
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}, 8 + length


def _of_folder(folder: Path) -> CheckpointShape | None:
    model_config = read_object(folder / "config.json")
    sizes = tensor_sizes(folder)
    if not sizes:
        return shape_of_config(model_config, str(folder))
    model_config = {**model_config, **(model_config.get("text_config") or {})}
    values = {
        key: next(
            (
                model_config[name]
                for name in names
                if model_config.get(name) and type(model_config[name]) is int
            ),
            None,
        )
        for key, names in ALIASES.items()
    }
    kind = str(model_config.get("model_type"))
    made = _made(kind, values, sizes, model_config.get("head_dim"))
    return replace(made, **kept_in_training(kind, model_config)) if made else None


def _of_gguf(path: Path) -> CheckpointShape | None:
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    kind = reader.fields["general.architecture"].contents()
    values = {
        key: reader.fields[f"{kind}.{name}"].contents()
        for key, name in GGUF.items()
        if f"{kind}.{name}" in reader.fields
    }
    sizes = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    values["vocabulary"] = max(sizes["token_embd.weight"])
    length = reader.fields.get(f"{kind}.attention.key_length")
    return _made(kind, values, sizes, length.contents() if length else None)


def _made(
    kind: str, values: dict[str, Any], sizes: dict[str, list[int]], head_dim: int | None
) -> CheckpointShape | None:
    if not all(values.get(name) for name in ("width", "layers", "heads", "vocabulary")) or not sizes:
        return None
    wide = {name: size for name, size in sizes.items() if len(size) >= 2}
    rows = values["vocabulary"]
    tied = not any(
        name.endswith(("lm_head.weight", "embed_out.weight")) or name == "output.weight" for name in sizes
    )
    gated = any("gate" in name for name in wide)
    return CheckpointShape(
        kind=kind,
        width=values["width"],
        layers=values["layers"],
        heads=values["heads"],
        kv_heads=values.get("kv_heads") or values["heads"],
        head_dim=head_dim or values["width"] // values["heads"],
        feed_forward=values.get("feed_forward") or 4 * values["width"],
        gated=gated,
        vocabulary=rows,
        tied=tied,
        longest=values.get("longest"),
        parameters=sum(math.prod(size) for size in sizes.values()),
        in_matrices=sum(math.prod(size) for name, size in wide.items() if NUMBERED.search(name)),
    )


def _downloaded(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None

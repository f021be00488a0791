"""The shape of a model on this machine, read from its files' headers: no weights, no torch."""

from __future__ import annotations

import functools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.identity import base_of
from llmlab.runs.folder import find_model

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
ALIASES = {
    "width": ("hidden_size", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "feed_forward": ("intermediate_size", "d_ff", "n_inner", "ffn_dim"),
    "vocabulary": ("vocab_size",),
    "longest": ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx"),
}
GGUF = {
    "width": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "feed_forward": "feed_forward_length",
    "longest": "context_length",
}


@dataclass(frozen=True)
class CheckpointShape:
    """What a plan needs to know of a model.

    Attributes:
        kind: its architecture's name.
        width: of the hidden states.
        layers: blocks.
        heads: of attention.
        kv_heads: of keys and values.
        head_dim: width of a head.
        feed_forward: width of the feed-forward layers.
        gated: whether these have a gate.
        vocabulary: rows of the embedding.
        tied: whether the head is the embedding.
        longest: positions it was made for; None where it does not say.
        parameters: all of them, tied ones once.
        in_matrices: those of the blocks' matrices.
    """

    kind: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    gated: bool
    vocabulary: int
    tied: bool
    longest: int | None
    parameters: int
    in_matrices: int


def checkpoint_shape(name: str) -> CheckpointShape | None:
    """Returns the shape of a run, a folder, a GGUF file or a hub id that was downloaded before; of an adapter
    its base's.

    None where it is not on this machine or does not say enough.
    """
    try:
        where = Path(find_model(name))
    except LabError:
        return None
    if not where.exists():
        where = _downloaded(name) or where
    try:
        stamp = where.stat().st_mtime_ns
    except OSError:
        return None
    return _shape(where, stamp)


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
    model_config = {**model_config, **(model_config.get("text_config") or {})}
    sizes = tensor_sizes(folder)
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
    return _made(str(model_config.get("model_type")), values, sizes, model_config.get("head_dim"))


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
    outside = {name for name, size in wide.items() if max(size[:2]) >= rows or "wpe" in name}
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
        in_matrices=sum(math.prod(size) for name, size in wide.items() if name not in outside),
    )


def _downloaded(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None

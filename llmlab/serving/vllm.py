"""vLLM as the engine: where it is installed and knows the model, it is started with the same options."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

from llmlab.config.loading import LoadOptions
from llmlab.config.serving import ServeOptions
from llmlab.endpoint import API_KEY
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.resolve import ModelRef

DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OWN = "llmlab"  # how the lab's architectures begin
VLLM_KEY = "VLLM_API_KEY"


def why_not(ref: ModelRef, load: LoadOptions, *, changed: bool) -> str:
    """Returns why vLLM cannot serve a model as it is asked to; "" where it can.

    Args:
        ref: the model.
        load: how it is loaded.
        changed: whether the settings of answers were changed: vLLM takes them from a request alone.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if ref.kind in ("adapter", "gguf"):
        return "vLLM is started with whole models here, not with adapters or GGUF files"
    if ref.kind == "folder":
        try:
            kind = str(read_object(ref.path / "config.json").get("model_type"))
        except (OSError, ValueError):
            kind = ""
        if not kind or kind.startswith(OWN):
            return "vLLM does not know this architecture of the lab"
    if load.load_in == "8bit":
        return "vLLM's bitsandbytes quantises to 4 bit"
    if load.device not in ("auto", "cuda"):
        return "vLLM is started on a GPU here"
    return "vLLM takes the settings of an answer from the request, not from `--set`" if changed else ""


def command(ref: ModelRef, load: LoadOptions, options: ServeOptions, name: str) -> list[str]:
    """Returns the command that starts vLLM; the key is not in it, since process lists show commands."""
    return [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", str(ref.path) if ref.kind != "hub" else ref.where),
        *("--served-model-name", name),
        *("--host", options.host, "--port", str(options.port)),
        *("--dtype", DTYPES[load.dtype]),
        *(("--quantization", "bitsandbytes") if load.load_in == "4bit" else ()),
        "--disable-log-requests",
    ]


def run(arguments: list[str], key: str) -> int:
    """Runs vLLM until it ends; Ctrl+C is for it. Returns its exit code, 130 after Ctrl+C.

    Raises:
        LabError: when it cannot be started.
    """
    environment = {name: value for name, value in os.environ.items() if name not in (VLLM_KEY, API_KEY)}
    if key:
        environment[VLLM_KEY] = key
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        code = subprocess.run(arguments, check=False, env=environment).returncode
    except OSError as error:
        raise LabError(f"vLLM cannot be started ({error.strerror})") from None
    finally:
        signal.signal(signal.SIGINT, before)
    return 130 if interrupted else code

"""Whether vLLM can write a run's answers: asked before anything is loaded."""

from __future__ import annotations

import importlib.util
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llmlab.config.rollouts import RolloutConfig
from llmlab.config.vllm import VLLMOptions
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.families import Family, native_family
from llmlab.models.resolve import ModelRef
from llmlab.models.transformer.config import LabConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from llmlab.models.typed import LanguageModel
    from llmlab.training.vllm_engine import VLLMAnswers

INSTALL = "pip install 'llmlab[vllm]', or set `vllm` to \"off\""
SENDS = ("cuda",)  # devices from which a server's GPUs can fetch weights: NCCL knows no other
PATIENCE = 10  # seconds that a server has to say that it is there


def installed() -> bool:
    """Returns whether vLLM is there."""
    return importlib.util.find_spec("vllm") is not None


def refuse_vllm(config: VLLMOptions, policy: ModelRef, device: str) -> None:
    """Refuses vLLM where it cannot write the answers of a run.

    Raises:
        LabError: when it is not installed, does not know the policy's architecture, no server answers, or
            this device cannot send it weights.
    """
    if config.vllm == "off":
        return
    if not installed():
        raise LabError(f'`vllm` "{config.vllm}": the package vllm is not installed', remedy=INSTALL)
    if policy.kind == "folder":
        kind = str(read_object(policy.path / "config.json").get("model_type"))
        if kind == LabConfig.model_type:
            family_in_vllm(LabConfig.from_pretrained(policy.path))
    if config.vllm == "server":
        _refuse_server(config, policy, device)


@dataclass(frozen=True)
class Answering:
    """How vLLM writes the answers of a run.

    Attributes:
        config: of the run.
        policy: where it came from.
        temperature: of the distribution.
        ends: ids of the tokens that end an answer.
    """

    config: RolloutConfig
    policy: ModelRef
    temperature: float
    ends: list[int]

    def engine(
        self, model: LanguageModel, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase
    ) -> VLLMAnswers:
        """Returns vLLM with the weights of a policy.

        Raises:
            LabError: when it does not start, or has no such architecture.
        """
        from llmlab.training.vllm_engine import VLLMAnswers  # here: vLLM takes seconds to import

        return VLLMAnswers(model, accelerator, tokenizer, self)


def answering(
    config: RolloutConfig, policy: ModelRef, temperature: float, ends: list[int]
) -> Answering | None:
    """Returns how vLLM writes the answers of a run; None where the policy does itself."""
    return None if config.vllm == "off" else Answering(config, policy, temperature, ends)


def family_in_vllm(config: LabConfig) -> Family:
    """Returns the architecture under which vLLM computes the lab's model.

    Raises:
        LabError: when there is none, with the reason.
    """
    try:
        family = native_family(config)
    except LabError as error:
        raise LabError(f"vLLM has no such architecture: {error.what}", remedy=_without()) from None
    if "vLLM" not in family.programs:
        raise LabError(
            f"vLLM computes {family.model_type}, which this model would be there, in another way",
            remedy=_without(),
        )
    return family


def _without() -> str:
    return 'set `vllm` to "off": the model writes its answers itself'


def server_url(config: VLLMOptions) -> str:
    """Returns the address of the vLLM server."""
    host = f"[{config.vllm_host}]" if ":" in config.vllm_host else config.vllm_host
    return f"http://{host}:{config.vllm_port}"


def server_command(policy: ModelRef) -> str:
    """Returns the command that starts a server for a policy."""
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {policy.where} --weight-transfer-config"
        ' \'{"backend": "nccl"}\' --logprobs-mode processed_logprobs --max-logprobs -1'
    )


def _refuse_server(config: VLLMOptions, policy: ModelRef, device: str) -> None:
    if device not in SENDS:
        raise LabError(
            f'`vllm` "server": weights go to the server from GPU to GPU, and this run computes on {device}',
            remedy='train on an NVIDIA GPU, or set `vllm` to "off"',
        )
    url = server_url(config)
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE) as answer:
            status = cast(int, answer.status)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise LabError(
            f"no vLLM server answers at {url} ({getattr(error, 'reason', error)})",
            remedy=f"start it: {server_command(policy)}",
        ) from None
    if status != 200:
        raise LabError(f"the server at {url} is not ready (status {status})", remedy="look at its log")

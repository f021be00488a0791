"""vLLM as the engine that writes the answers which GRPO and PPO learn from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from llmlab.config.options import option
from llmlab.config.training import TrainingConfig

SECTION = "vLLM"
HERE, ELSEWHERE = {"vllm": ["colocate"]}, {"vllm": ["server"]}


class VLLMOptions(TrainingConfig):
    """Whether vLLM writes the answers, and where it runs."""

    vllm: Literal["off", "colocate", "server"] = option(
        "off",
        "vLLM",
        "Which engine writes the answers.",
        choices={
            "off": "the trained model itself: exact on resuming, and slow",
            "colocate": "vLLM on the devices that train: several times as fast on a GPU, with a share of its"
            " memory",
            "server": "a vLLM server on other GPUs, which is started before: no memory here",
        },
        advanced=True,
        section=SECTION,
        resume_note="answers from here on are drawn by the other engine",
    )
    vllm_host: str = option(
        "127.0.0.1",
        "vLLM host",
        "Name or address of the vLLM server.",
        applies_when=ELSEWHERE,
        advanced=True,
        resume="silent",
        min_length=1,
        section=SECTION,
    )
    vllm_port: int = option(
        8000,
        "vLLM port",
        "Port of the vLLM server.",
        applies_when=ELSEWHERE,
        advanced=True,
        resume="silent",
        ge=1,
        le=65_535,
        section=SECTION,
    )
    vllm_weights_port: int = option(
        51216,
        "vLLM weights port",
        "Port of this machine on which the server's GPUs fetch the new weights.",
        applies_when=ELSEWHERE,
        advanced=True,
        resume="silent",
        ge=1,
        le=65_535,
        section=SECTION,
    )
    vllm_memory: float = option(
        0.3,
        "vLLM memory share",
        "Share of a device's memory that vLLM takes for weights and cache; training has the rest.",
        typical="0.2 to 0.5",
        applies_when=HERE,
        advanced=True,
        resume="silent",
        gt=0,
        lt=1,
        section=SECTION,
    )
    vllm_tensor_parallel: int = option(
        1,
        "vLLM tensor parallel",
        "Devices that hold one copy of vLLM's weights together; divides the devices that train.",
        applies_when=HERE,
        advanced=True,
        resume="silent",
        ge=1,
        le=64,
        section=SECTION,
    )

    @model_validator(mode="before")
    @classmethod
    def _from_a_switch(cls, data: Any) -> Any:
        """Takes `use_vllm`, true or false, from older configs of GRPO."""
        if not isinstance(data, dict) or "use_vllm" not in data:
            return data
        data = dict(data)
        switch = data.pop("use_vllm")
        if "vllm" in data or not isinstance(switch, bool):
            raise ValueError("`use_vllm` is the older name of `vllm`: use `vllm` off, colocate or server")
        return {**data, "vllm": "colocate" if switch else "off"}

    @model_validator(mode="after")
    def _check_vllm(self) -> VLLMOptions:
        if self.vllm == "off":
            return self
        if getattr(self, "quantised", "none") != "none":
            raise ValueError(
                f'`vllm` "{self.vllm}" does not go with weights in 4 or 8 bit: vLLM is given whole weights'
                ' before each batch of answers; set `adapter` to "lora" without `load_in`, or `vllm` to "off"'
            )
        devices = self.devices * self.nodes
        if self.vllm == "colocate" and devices % self.vllm_tensor_parallel:
            raise ValueError(
                f"`vllm_tensor_parallel` {self.vllm_tensor_parallel} does not divide the {devices} devices"
                " that train"
            )
        return self

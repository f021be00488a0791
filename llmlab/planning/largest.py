"""The largest model that can be trained from scratch on a machine, and how much it should read. No torch.

Hoffmann et al. 2022 (Chinchilla): training takes about 6 FLOPs for each parameter and token, and compute is
spent best on about 20 tokens for each parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.config import ModelConfig, PretrainConfig
from llmlab.config.loader import apply_changes
from llmlab.errors import LabError
from llmlab.planning.engines import EngineNeed, choose_engine
from llmlab.planning.fit import largest
from llmlab.planning.machines import Machine
from llmlab.planning.parameters import count_parameters
from llmlab.planning.speed import Pace, pace_of

FLOPS = 6  # for each parameter and token
TOKENS = 20  # for each parameter
WIDTHS = (*range(128, 2048, 128), *range(2048, 20_481, 512))
# of a width to the number of layers, from the deepest models to the flattest: Llama 2 7B has 128, GPT-3 128,
# SmolLM 135M 19, Pythia 1B 128, Gemma 2B 114
DEEPEST, FLATTEST = 96, 160
VOCABULARY = 32_768


@dataclass(frozen=True)
class LargestModel:
    """The largest model that can be trained from scratch.

    Attributes:
        config: its shape.
        parameters: of it.
        need: what each device holds, with one row a forward pass and activations made anew.
        tokens: that make the best use of compute.
        flops: of training on them.
        pace: of an update; None where it is not known.
        seconds: for all tokens; None where it is not known.
    """

    config: ModelConfig
    parameters: int
    need: EngineNeed
    tokens: float
    flops: float
    pace: Pace | None
    seconds: float | None


def shape(width: int, layers: int, vocabulary: int, length: int) -> ModelConfig:
    """Returns a shape as the Llamas have it: SwiGLU, 4 queries to a key where they can be divided so."""
    head = 128 if width >= 2048 else 64
    heads = width // head
    return ModelConfig(
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=max(1, heads // 4) if heads % 4 == 0 else heads,
        d_ff=-(-8 * width // 3 // 64) * 64,
        vocab_size=vocabulary,
        max_seq_len=length,
        tie_word_embeddings=width < 2048,
    )


def largest_model(
    machine: Machine,
    devices: int = 1,
    *,
    length: int = 2048,
    vocabulary: int = VOCABULARY,
    changes: Mapping[str, Any] | None = None,
) -> LargestModel | None:
    """Returns the largest model that fits; None where none does.

    Args:
        machine: to train on.
        devices: of it.
        length: tokens of a row.
        vocabulary: rows of the embedding.
        changes: options of the run; those that do not suit base training are left out.
    """

    def run(width: int, layers: int) -> PretrainConfig:
        return _run(shape(width, layers, vocabulary, length), devices, changes)

    def fits(width: int, layers: int) -> bool:
        return _need(run(width, layers), devices, machine).fits

    widths = largest(len(WIDTHS), lambda count: fits(WIDTHS[count - 1], _layers(WIDTHS[count - 1], FLATTEST)))
    if not widths:
        return None
    width = WIDTHS[widths - 1]
    layers = largest(_layers(width, DEEPEST), lambda count: fits(width, count))
    config = run(width, layers)
    assert isinstance(config.model, ModelConfig)
    parameters = count_parameters(config.model).total
    tokens, pace = float(TOKENS * parameters), pace_of(config, machine)
    return LargestModel(
        config.model,
        parameters,
        _need(config, devices, machine),
        tokens,
        FLOPS * parameters * tokens,
        pace,
        tokens / pace.speed if pace else None,
    )


def _layers(width: int, ratio: int) -> int:
    return max(2, width // ratio)


def _run(model: ModelConfig, devices: int, changes: Mapping[str, Any] | None) -> PretrainConfig:
    config = PretrainConfig(
        model=model,
        batch_size=1,
        gradient_accumulation_steps=max(1, 64 // devices),
        gradient_checkpointing=True,
        devices=devices,
    )
    for name, value in (changes or {}).items():
        try:
            config = apply_changes(config, {name: value})
        except LabError:
            continue
    return config


def _need(config: PretrainConfig, devices: int, machine: Machine) -> EngineNeed:
    need = choose_engine(config, devices=devices, machine=machine).need
    assert need is not None  # the shape is there
    return need

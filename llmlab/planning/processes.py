"""How many processes a run has: those that were started, else those that its config asks for. No torch."""

from __future__ import annotations

import os

from llmlab.config.training import TrainingConfig


def processes_of(config: TrainingConfig) -> int:
    """Returns the processes of the whole job: those of torchrun where it started this one, else `devices` x
    `nodes`.
    """
    started = os.environ.get("WORLD_SIZE")
    return int(started) if started else config.devices * config.nodes


def replicas_of(config: TrainingConfig) -> int:
    """Returns how many of them have rows of their own."""
    return config.replicas(processes_of(config))


def local_processes_of(config: TrainingConfig) -> int:
    """Returns those of them that share this machine."""
    started = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE")
    return int(started) if started else config.devices

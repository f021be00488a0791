"""Decides whether a run needs several processes, and starts them."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.launching.torchrun import Placement, launch, under_a_launcher

PORT = 29_500  # torch's own default


def several_processes(config: TrainingConfig) -> bool:
    """Returns whether this process has to start others that do the run: the config asks for several
    devices, and no launcher has started this one.
    """
    return config.devices * config.nodes > 1 and not under_a_launcher()


def placement(config: TrainingConfig, rendezvous: str, job_id: str) -> Placement:
    """Returns where the processes of a run are.

    Raises:
        LabError: when the devices are not there, or several machines are not told where to meet.
    """
    _refuse_missing_devices(config)
    if config.nodes > 1 and not rendezvous:
        raise LabError(
            f"{config.nodes} nodes have to meet somewhere",
            where="nodes",
            remedy="start the same command on each of them with --rendezvous HOST:PORT, HOST being one of"
            " them; `llmlab slurm` writes a job that does so",
        )
    host, colon, port = rendezvous.rpartition(":")
    if rendezvous and not colon:
        rendezvous = f"{rendezvous}:{PORT}"
    elif rendezvous and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise LabError(f"`--rendezvous {rendezvous}` is no HOST:PORT", remedy=f"for example node1:{PORT}")
    where = dict(rendezvous=rendezvous, job_id=job_id) if config.nodes > 1 else {}
    return Placement(config.devices, config.nodes, restarts=config.restarts, **where)


def start(config: TrainingConfig, arguments: Sequence[str], rendezvous: str, job_id: str) -> int:
    """Runs `llmlab run ARGUMENTS` in as many processes as a config asks for, and returns the exit code.

    Raises:
        LabError: when they cannot be started, or one of them failed.
    """
    return launch(["run", *arguments], placement(config, rendezvous, job_id))


def _refuse_missing_devices(config: TrainingConfig) -> None:
    from llmlab.models.device import choose_device, device_count

    device = choose_device(config.device)
    if device == "mps":
        raise LabError(f"`devices` {config.devices}: an Apple GPU trains alone", remedy="set `devices` to 1")
    if device == "cuda" and (there := device_count()) < config.devices:
        raise LabError(
            f"`devices` {config.devices}: this machine has {there}",
            remedy=f"set `devices` to {there}, or look at CUDA_VISIBLE_DEVICES",
        )

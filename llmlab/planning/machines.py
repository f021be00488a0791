"""What a run is planned for: this machine, a graphics card by its name, or so many bytes. No torch.

Of the memory that a card is sold with, a run can take less: error correction keeps a sixteenth on cards with
GDDR memory for servers, the driver about 2 %, and CUDA's context with the libraries' workspaces 0.75 GB.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from llmlab.errors import LabError
from llmlab.hardware import gpu_memory, gpu_name, has_nvidia, host_memory, processor_name

FILE = Path(__file__).with_name("gpus.toml")
ECC = 1 / 16
DRIVER = 0.02
CONTEXT = 0.75e9
UNITS = {
    "": 1e9,
    "g": 1e9,
    "gb": 1e9,
    "gib": 2**30,
    "m": 1e6,
    "mb": 1e6,
    "mib": 2**20,
    "tb": 1e12,
    "tib": 2**40,
}
NOISE = re.compile(r"nvidia|geforce|rtx|tesla|quadro|graphics|generation|[\s_-]")


@dataclass(frozen=True)
class Gpu:
    """A graphics card.

    Attributes:
        name: as it is sold.
        memory: as it is sold, in GiB.
        bf16: FLOP/s of dense matrix products in bf16 at most, in units of 1e12.
        bandwidth: of its memory, in GB/s.
        source: where the figures stand, a key of the table's sources.
        also: other names.
        ecc: whether error correction takes a part of the memory.
        half: whether it has fp16 in place of bf16.
    """

    name: str
    memory: float
    bf16: float
    bandwidth: float
    source: str
    also: list[str] = field(default_factory=list)
    ecc: bool = False
    half: bool = False

    @property
    def nominal(self) -> float:
        """Bytes that it is sold with."""
        return self.memory * 2**30


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        name: of a device, for a person.
        on_gpu: whether its devices are GPUs.
        free: bytes of a device that a run can take.
        host_free: bytes of the machine's own memory that offload can take; 0 where it is not known.
        nominal: bytes of a device as it is sold; 0 where what is free was asked.
        gpu: of the table, where it is one.
        here: whether it is this machine.
    """

    name: str
    on_gpu: bool
    free: int
    host_free: int = 0
    nominal: float = 0.0
    gpu: Gpu | None = None
    here: bool = False


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Returns the cards that are known."""
    with open(FILE, "rb") as file:
        return tuple(Gpu(**entry) for entry in tomllib.load(file)["gpu"])


def find_gpu(name: str) -> Gpu:
    """Returns the card of a name; case, spaces, "NVIDIA" and "GeForce" do not matter.

    Raises:
        LabError: when there is none, with the nearest names.
    """
    names = {_plain(one): gpu for gpu in gpus() for one in (gpu.name, *gpu.also)}
    wanted = _plain(name)
    if wanted in names:
        return names[wanted]
    begun = [gpu.name for plain, gpu in names.items() if wanted and plain.startswith(wanted)]
    near = [names[plain].name for plain in difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)]
    likely = list(dict.fromkeys([*begun, *near]))[:4]
    remedy = f"did you mean {', '.join(likely)}?" if likely else "give its memory: --memory 24GB"
    raise LabError(f"there is no graphics card {name!r} in the table", remedy=remedy)


def known_gpu(name: str) -> Gpu | None:
    """Returns the card of a name; None where there is none."""
    try:
        return find_gpu(name)
    except LabError:
        return None


def parse_bytes(text: str) -> float:
    """Returns an amount of memory in bytes: "12GB" (1e9), "12GiB" (2**30), "12" (GB), "900 MB".

    Raises:
        LabError: when it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in UNITS or not 1e8 <= float(match[1]) * UNITS[match[2]] <= 1e13:
        raise LabError(f"{text!r} is no amount of memory", remedy="write 12GB, 12GiB or 900MB")
    return float(match[1]) * UNITS[match[2]]


def usable(nominal: float, *, ecc: bool = False) -> int:
    """Returns the bytes of a GPU that a run can take, of those that it is sold with."""
    return int(max(0.0, nominal * (1 - ECC if ecc else 1) * (1 - DRIVER) - CONTEXT))


def machine_with(gpu: str = "", memory: str = "") -> Machine:
    """Returns what a person names: a card, an amount of memory, or, with neither, this machine.

    Raises:
        LabError: when both are named, or what is named is not known.
    """
    if gpu and memory:
        raise LabError("`--gpu` and `--memory` say the same thing", remedy="name only one of them")
    if gpu:
        card = find_gpu(gpu)
        return Machine(card.name, True, usable(card.nominal, ecc=card.ecc), 0, card.nominal, card)
    if memory:
        nominal = parse_bytes(memory)
        return Machine(f"a GPU with {memory.strip()}", True, usable(nominal), 0, nominal)
    return this_machine()


def this_machine(count: int = 1) -> Machine:
    """Returns this machine, with what is free on the fullest of `count` GPUs, or for each of so many
    processes that share the processor.
    """
    free = gpu_memory(count) if has_nvidia() else 0
    if free:
        name = gpu_name() or "NVIDIA GPU"
        return Machine(name, True, free, host_memory(), 0.0, known_gpu(name), here=True)
    return Machine(processor_name(), False, host_memory() // count, host_memory(), here=True)


def _plain(name: str) -> str:
    return NOISE.sub("", name.lower())

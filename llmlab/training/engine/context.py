"""What every part of a run is given."""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import dataclass, field, replace

from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.models.device import choose_device, choose_precision
from llmlab.training.engine.evaluator import refuse_engine
from llmlab.training.engine.reporter import Reporter
from llmlab.training.engine.sharing import ALONE, Sharing, resolve_sharing
from llmlab.trust import secret_in


@dataclass(frozen=True)
class RunContext:
    """A run's config and what follows from it on this machine.

    Attributes:
        config: of a kind in the registry of methods.
        device: "cpu", "cuda" ...
        precision: "fp32", "bf16" or "fp16".
        reporter: that the run speaks to.
        sharing: how the devices of the job share the work.
        started: of `time.perf_counter`.
    """

    config: TrainingConfig
    device: str
    precision: str
    reporter: Reporter
    sharing: Sharing = ALONE
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, config: TrainingConfig, reporter: Reporter) -> RunContext:
        """Returns the context of a config.

        Raises:
            LabError: when the config holds a secret, or asks for a device, a precision or a logger that is
                not there.
        """
        if secret := secret_in(json.dumps(config.to_json_dict(), ensure_ascii=False)):
            raise LabError(
                f"the config contains {secret}, which would be written to records and shown on screens",
                remedy="take it out",
            )
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        for name in config.report_to:
            if importlib.util.find_spec(name) is None:
                raise LabError(
                    f"`report_to` {name!r} is not installed", remedy=f"pip install {name}, or leave it out"
                )
        return cls(config, device, precision, reporter)

    def with_config(self, config: TrainingConfig) -> RunContext:
        """Returns the context with another config for the same machine."""
        return replace(self, config=config)

    def with_sharing(self) -> RunContext:
        """Returns the context with the engine that the processes of the job, now connected, will use.

        Raises:
            LabError: when the engine that was asked for cannot be had, or not with a suite.
        """
        sharing = resolve_sharing(self.config, self.device, self.precision)
        refuse_engine(self.config, sharing.engine)
        return replace(self, sharing=sharing)

    def seconds(self) -> float:
        """Returns the wall time since the run was asked for."""
        return time.perf_counter() - self.started

"""A model in memory that answers, which may be the backbone of a dual head."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.loading import LoadOptions
from llmlab.endpoint import is_endpoint
from llmlab.evaluation.judges import Judge, LocalJudge, ServedJudge, reference_judge
from llmlab.models.dual_head import LabDualHeadForCausalLM
from llmlab.models.load import is_backbone_of
from llmlab.models.loading import load_for_use
from llmlab.models.typed import LanguageModel


@dataclass
class Loaded:
    """A model that is in memory; `plain` where it is the backbone of a dual head."""

    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool = False

    def answering(self) -> AbstractContextManager[None]:
        """Returns the context in which it answers."""
        if not self.plain:
            return nullcontext()
        assert isinstance(self.model, LabDualHeadForCausalLM)
        return self.model.backbone_alone()


def load(name: str, before: Loaded | None, config: EvaluationConfig) -> Loaded:
    """Returns a model in memory; the backbone of a dual head that is there is not loaded a second time."""
    if before and is_backbone_of(name, before.model):
        return replace(before, name=name, plain=True)
    options = LoadOptions(load_in=config.load_in, device=config.device, dtype=config.dtype)
    return Loaded(name, *load_for_use(name, options))


class Judges:
    """The judges of an evaluation: a model is loaded once, a server asked once for its models. Ending the
    block closes connections.

    Args:
        config: of the evaluation.
        folder: of it, where what a served judge says is kept.
    """

    def __init__(self, config: EvaluationConfig, folder: Path):
        self.config, self.folder = config, folder
        self._models: dict[str, LocalJudge | ServedJudge] = {}

    def of(self, name: str) -> Judge:
        """Returns the judge of a name: a model, the address of a server, or `reference`.

        Raises:
            LabError: when it cannot be loaded or reached.
        """
        return reference_judge(name) or self.model(name)

    def model(self, name: str) -> LocalJudge | ServedJudge:
        """Returns a judge that is a model, here or served.

        Raises:
            LabError: when it cannot be loaded or reached.
        """
        if name not in self._models:
            config = self.config
            if is_endpoint(name):
                self._models[name] = ServedJudge(name, config.judge_tokens, self.folder)
            else:
                options = LoadOptions(load_in=config.load_in, device=config.device, dtype=config.dtype)
                self._models[name] = LocalJudge(*load_for_use(name, options))
        return self._models[name]

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._models.values():
            if isinstance(one, ServedJudge):
                one.close()

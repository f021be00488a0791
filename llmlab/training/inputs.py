"""Everything that a run reads is looked for before it begins: models, tokenizer, datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmlab.config import ModelConfig, PretrainConfig, load_config
from llmlab.config.base import KindConfig
from llmlab.config.evaluation import PARENT, EvaluationConfig
from llmlab.config.judges import is_model
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.suites import tasks_of, watched_tasks
from llmlab.config.training import TrainingConfig
from llmlab.data.catalogue import entry, real_id
from llmlab.data.local import local_files
from llmlab.errors import LabError
from llmlab.models.hub import HubAnswer, look_up
from llmlab.models.resolve import check_model
from llmlab.runs.folder import find_model


@dataclass(frozen=True)
class Unchecked:
    """What only the hub can have and could not be looked up: the option, the name, and why."""

    option: str
    name: str
    answer: HubAnswer


def check_inputs(config: KindConfig) -> list[Unchecked]:
    """Looks for everything that a run reads: models, tokenizer, datasets. Nothing is downloaded.

    Returns:
        What could not be looked up.

    Raises:
        LabError: with the first that is not there, cannot be read, or does not fit its use.
    """
    unchecked: list[Unchecked] = []

    def note(option: str, name: str, answer: HubAnswer | None) -> None:
        if answer is not None and not answer.is_sure:
            unchecked.append(Unchecked(option, name, answer))

    shape: KindConfig | str | None = config
    if isinstance(config, PretrainConfig):
        shape = config.model if config.init_from is None else None
    shape = load_config(shape) if isinstance(shape, str) else shape
    if isinstance(shape, ModelConfig):
        note("tokenizer_name", shape.tokenizer_name, check_tokenizer(shape.tokenizer_name))
    if isinstance(config, EvaluationConfig):
        sources = [*(task.source for task in tasks_of(config)), *config.judge_check]
    elif isinstance(config, TrainingConfig):
        watched = [task.source for task in watched_tasks(config)]
        sources = [*config.datasets, *config.eval_datasets, *watched]
    else:
        return unchecked
    for option, name, use in _models(config):
        place = check_model(name, use)
        if isinstance(place, HubAnswer):
            note(option, name, place)
        elif option == config.STARTS_FROM:
            check_tokenizer(str(place))
    for source in sources:
        if not local_files(source.name, source.split):
            in_catalogue = entry(source.name, source.subset) is not None
            note("datasets", source.line(), look_up(real_id(source.name), "dataset", exists=in_catalogue)[0])
    return unchecked


def _models(config: TrainingConfig | EvaluationConfig) -> Iterator[tuple[str, str, str]]:
    """Yields the models that a run loads: the option, the name, and what it is wanted for."""
    if isinstance(config, EvaluationConfig):
        yield config.STARTS_FROM, config.model, config.kind
        if config.against and config.against != PARENT:
            yield "against", config.against, config.kind
        for judge in {task.judge for task in tasks_of(config) if task.judge and is_model(task.judge)}:
            yield "judge", judge, config.kind
        for reward in [reward for task in tasks_of(config) for reward in task.rewards]:
            if reward.kind == "model":
                yield "rewards", reward.name, "score"
        return
    if isinstance(config, PretrainConfig):
        if config.init_from:
            yield config.STARTS_FROM, config.init_from, config.kind
        return
    yield config.STARTS_FROM, str(getattr(config, config.STARTS_FROM)), config.kind
    if name := getattr(config, "reference_checkpoint", None):
        yield "reference_checkpoint", name, config.kind
    if isinstance(config, RolloutConfig):
        for reward in config.reward_model:
            if reward.kind == "model":
                yield "reward_model", reward.name, "score"


def check_tokenizer(name: str) -> HubAnswer | None:
    """Returns what is known of a tokenizer that only the hub can have; None for one that is here and loads.

    Raises:
        LabError: when there is none of this name, or it does not load.
    """
    from transformers.utils import logging

    from llmlab.data.tokenizer import load_tokenizer

    if name != "byte" and not Path(name).exists():
        try:
            find_model(name, tokenizer=True)
        except LabError:
            remedy = "name a folder, a hub id or `byte`, or train one: `llmlab tokenizer SOURCE -o FOLDER`"
            raise LabError("there is no such tokenizer", where=name, remedy=remedy) from None
        return look_up(name, "model")[0]
    logging.set_verbosity_error()
    load_tokenizer(name)
    return None

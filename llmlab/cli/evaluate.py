"""The command that measures a model: evaluate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmlab.cli import completing
from llmlab.cli.options import (
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LoadInOption,
    TrustOption,
    load_options,
    show,
    source_config,
    trust_names,
    trust_rewards,
)
from llmlab.errors import LabError

if TYPE_CHECKING:
    from llmlab.config import SourceConfig
    from llmlab.config.loading import LoadOptions
    from llmlab.config.rewards import RewardSource
    from llmlab.evaluation.sources import Measured


def evaluate(
    checkpoint: CheckpointArgument,
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="SOURCE",
            help="Dataset to evaluate on; repeat it for more.",
            autocompletion=completing.sources,
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Options of the sources: split, max_rows ...",
            autocompletion=completing.changes,
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="score or generate: how a label or an answer is found.",
            autocompletion=completing.one_of("score|generate"),
        ),
    ] = "score",
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="REWARD", help="Also generate answers and score them with this reward."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="With --reward: another model, for the win rate.", autocompletion=completing.runs),
    ] = None,
    trust: TrustOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens per window or conversation; default: 1,024, or the context length if it is shorter.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens between the starts of two windows; default: half a window."),
    ] = None,
    load_in: LoadInOption = "none",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a model: labels of a classification, loss of texts, preferences of pairs."""
    options = load_options(load_in, device, dtype)
    if by not in ("score", "generate"):
        raise LabError(f"`--by` {by!r} is not score or generate")
    if reward and by != "score":
        raise LabError("with `--reward` answers are always generated", remedy="leave out `--by`")
    if against and not reward:
        raise LabError(
            "`--against` compares answers by a reward",
            remedy="add --reward NAME (`llmlab new grpo` lists them)",
        )
    from llmlab.config.base import validate
    from llmlab.config.rewards import RewardSource
    from llmlab.runs.folder import find_model

    sources = [source_config(line, set_) for line in task]
    rewards = [validate(RewardSource, line) for line in reward or []]
    if reward and (max_length or stride):
        from llmlab.evaluation.sources import refuse_lengths

        refuse_lengths(max_length, stride, "prompts that are answered", task[0])
    reward_models = [one.name for one in rewards if one.kind == "model"]
    for name in [checkpoint, *([against] if against else []), *reward_models]:
        find_model(name)  # a wrong name is refused before torch is loaded
    trust_names(trust)
    if rewards:
        results = _rewarded((checkpoint, against), sources, rewards, options, batch_size)
    else:
        how = {"by": by, "batch_size": batch_size, "max_length": max_length, "stride": stride}
        results = _measured(checkpoint, sources, options, how)
    if as_json:
        typer.echo(json.dumps([figures.to_json() for figures in results]))
    else:
        from llmlab.ui.data import measured

        show(measured(results))


def _measured(
    checkpoint: str, sources: list[SourceConfig], options: LoadOptions, how: dict[str, Any]
) -> list[Measured]:
    """Returns the figures of a model on each source."""
    from llmlab.libraries import importing, quiet_libraries
    from llmlab.screen import warn

    with importing():
        from llmlab.evaluation.sources import measure
        from llmlab.models.loading import load_for_use

    quiet_libraries(warn)
    model, tokenizer = load_for_use(checkpoint, options)
    return [measure(model, tokenizer, source, **how) for source in sources]


def _rewarded(
    names: tuple[str, str | None],
    sources: list[SourceConfig],
    rewards: list[RewardSource],
    options: LoadOptions,
    batch_size: int,
) -> list[Measured]:
    """Returns the mean reward of a model's answers, and its win rate against another."""
    from llmlab.libraries import importing, quiet_libraries
    from llmlab.models.device import choose_device
    from llmlab.screen import warn

    with importing():
        from llmlab.evaluation.win_rate import load_candidates, score_with_reward
        from llmlab.training.rewards import refuse_untrusted, weighted

    quiet_libraries(warn)
    trust_rewards(rewards)
    refuse_untrusted(rewards)
    device = choose_device(options.device)
    candidates = load_candidates(*names, options)
    score = weighted(rewards, device)
    return [score_with_reward(candidates, source, score, batch_size=batch_size) for source in sources]

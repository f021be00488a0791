"""The shape of the model that a run begins with, without loading it. No torch."""

from __future__ import annotations

from dataclasses import replace

from llmlab.config import KindConfig, ModelConfig, PretrainConfig, load_config
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.models.headers import checkpoint_shape
from llmlab.models.shapes import CheckpointShape
from llmlab.planning.parameters import count_parameters


def start_shape(config: TrainingConfig) -> CheckpointShape | None:
    """Returns the shape of the model that a run trains, in base training with the rows of new tokens; None
    where it is not known here.
    """
    if not isinstance(config, PretrainConfig):
        return checkpoint_shape(str(getattr(config, config.STARTS_FROM)))
    if config.init_from is None:
        shape = config.model if isinstance(config.model, ModelConfig) else _loaded(str(config.model))
        return shape_of(shape) if isinstance(shape, ModelConfig) else None
    start = checkpoint_shape(config.init_from)
    if start is None:
        return None
    # how many tokens the tokenizer has is not known without loading it: as many as there are rows
    rows = config.resize_vocabulary or start.vocabulary + len(config.added_tokens)
    more = (rows - start.vocabulary) * start.width * (1 if start.tied else 2)
    return replace(start, vocabulary=rows, parameters=start.parameters + more)


def row_length(config: PretrainConfig, shape: CheckpointShape) -> int:
    """Returns the tokens of a row of base training."""
    if config.init_from is None:
        return shape.longest or 0
    return config.row_length(shape.longest)


def shape_of(config: ModelConfig) -> CheckpointShape:
    """Returns the shape that a checkpoint of a model config has."""
    count = count_parameters(config)
    return CheckpointShape(
        kind="llmlab",
        width=config.d_model,
        layers=config.n_layers,
        heads=config.n_heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        feed_forward=config.d_ff,
        gated=config.gated,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
        longest=config.max_seq_len,
        parameters=count.total,
        in_matrices=count.attention + count.feed_forward,
        dropout=config.dropout > 0,
        attention_dropout=config.dropout > 0,
    )


def _loaded(path: str) -> KindConfig | None:
    try:
        return load_config(path)
    except LabError:
        return None

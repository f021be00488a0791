"""Base training: next-token cross-entropy over packed documents that do not see each other."""

from __future__ import annotations

from functools import partial

from transformers import AutoModelForCausalLM, TrainingArguments

from llmlab.config import ModelConfig, PretrainConfig, load_config
from llmlab.data.packed_text import pretrain_data
from llmlab.data.packing import PackedCollator, takes_bounds
from llmlab.data.tokenizer import load_tokenizer, token_ids
from llmlab.errors import LabError
from llmlab.models import LabForCausalLM
from llmlab.models.device import attention_kernel
from llmlab.models.load import load_model
from llmlab.models.transformer.shapes import to_lab_config, to_model_config
from llmlab.models.typed import moved
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.padding_free import packing_leaks
from llmlab.training.trainers.pretrain import BaseTrainer


def prepare(config: PretrainConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a base training run: a new model, or one that goes on from `init_from`.

    Raises:
        LabError: when the model config, the tokenizer or the data do not fit.
    """
    shape = model_config(config)
    tokenizer = load_tokenizer(shape.tokenizer_name)
    check_vocabulary(shape, len(tokenizer))
    tokenizer.chat_template = None  # a base model is completed, not chatted with; sft gives it a template
    data = pretrain_data(config, tokenizer, shape.max_seq_len)
    kernel = attention_kernel(config, device)
    if config.attention_backend == "flash" and shape.positional_encoding == "alibi":
        raise LabError(
            '`attention_backend` "flash" cannot add the bias of alibi', remedy='use "sdpa" or "flex"'
        )
    lab_config = to_lab_config(shape, **token_ids(tokenizer))
    if config.init_from:
        model, _ = load_model(config.init_from, attn_implementation=kernel)
        if (
            not isinstance(model, LabForCausalLM)
            or to_model_config(model.config, shape.tokenizer_name) != shape
        ):
            raise LabError(
                "is not of the architecture in `model`",
                where=config.init_from,
                remedy="take the config it was made with",
            )
    else:
        model = AutoModelForCausalLM.from_config(lab_config, attn_implementation=kernel)
    if takes_bounds(model) and packing_leaks(moved(model, device)):
        raise LabError(
            f'`attention_backend` "{config.attention_backend}" lets packed documents see each other',
            remedy='use "sdpa"',
        )
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=TrainingArguments,
        trainer=partial(
            BaseTrainer, data_collator=PackedCollator(tokenizer.pad_token_id, bounds=takes_bounds(model))
        ),
        parent=config.init_from,
    )


def model_config(config: PretrainConfig) -> ModelConfig:
    """Returns the model config of a run, read from its file where it is not inline."""
    if isinstance(config.model, ModelConfig):
        return config.model
    shape = load_config(config.model)
    if not isinstance(shape, ModelConfig):
        raise LabError(
            f"is a {shape.kind!r} config, not a model",
            where=config.model,
            remedy="`llmlab new model` makes one",
        )
    return shape


def check_vocabulary(shape: ModelConfig, needed: int) -> None:
    """Refuses a vocabulary that the tokenizer does not fit in.

    Raises:
        LabError: with the size that is needed.
    """
    if shape.vocab_size < needed:
        raise LabError(
            f"`vocab_size` {shape.vocab_size} is smaller than the {needed} tokens of the tokenizer"
            f" {shape.tokenizer_name!r}",
            remedy=f"use {needed} or more",
        )

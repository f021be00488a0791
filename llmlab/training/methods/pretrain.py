"""Base training: next-token cross-entropy over packed documents that do not see each other; of a new model,
or of one that is there (continued pretraining, Gururangan et al. 2020).
"""

from __future__ import annotations

from functools import partial

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from llmlab.config import ModelConfig, PretrainConfig, load_config
from llmlab.data.packed_text import pretrain_data
from llmlab.data.packing import PackedCollator, takes_bounds
from llmlab.data.pipeline import Prepared
from llmlab.data.tokenizer import load_tokenizer, opening_token, token_ids
from llmlab.errors import LabError
from llmlab.models import LabForCausalLM
from llmlab.models.device import attention_kernel
from llmlab.models.further import extend_vocabulary, refuse_rows_beyond_positions
from llmlab.models.policy import load_policy
from llmlab.models.resolve import resolve_model
from llmlab.models.transformer.context import context_length
from llmlab.models.transformer.shapes import to_lab_config, to_model_config
from llmlab.models.typed import moved
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.padding_free import packing_leaks
from llmlab.training.trainers.pretrain import BaseTrainer


def prepare(config: PretrainConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a base training run: a new model, or one that continues from `init_from`.

    Raises:
        LabError: when the model, the tokenizer or the data do not fit.
    """
    if config.init_from:
        return _further(config, config.init_from, device, precision, reporter)
    shape = model_config(config)
    tokenizer = load_tokenizer(shape.tokenizer_name)
    check_vocabulary(shape, len(tokenizer))
    tokenizer.chat_template = None  # a base model is completed, not chatted with; sft gives it a template
    data = pretrain_data(config, tokenizer, shape.max_seq_len)
    kernel = attention_kernel(config, device)
    lab_config = to_lab_config(shape, **token_ids(tokenizer))
    _refuse_flash_alibi(config, lab_config)
    model = AutoModelForCausalLM.from_config(lab_config, attn_implementation=kernel)
    if takes_bounds(model) and packing_leaks(moved(model, device)):
        raise _leaks(config, model)
    return _own_loss(model, tokenizer, data, parent=None)


def _further(config: PretrainConfig, start: str, device: str, precision: str, reporter: Reporter) -> Job:
    """The job of continued pretraining: any causal model with its own tokenizer, whole or through an
    adapter.
    """
    policy = resolve_model(start)
    model, tokenizer = load_policy(policy, config, device, precision)
    if config.model is not None:
        _refuse_other_architecture(model, model_config(config), start)
    if tokenizer.eos_token_id is None:
        raise LabError(
            "has a tokenizer without an end-of-text token, which closes a document",
            where=start,
            remedy="set `eos_token` in its tokenizer_config.json",
        )
    if new := extend_vocabulary(model, tokenizer, config.added_tokens, config.resize_vocabulary, start):
        reporter.note(f"{new:,} tokens are new: their embeddings begin as the mean of the others")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    length = _row_length(config, model, reporter)
    _refuse_flash_alibi(config, model.config)
    tried = moved(model, device) if takes_bounds(model) and config.quantised == "none" else model
    if _leaks_somehow(tried):
        raise _leaks(config, model)
    # what the lab's own model began with its own loss goes on so
    own = isinstance(model, LabForCausalLM)
    data = pretrain_data(config, tokenizer, length, begin=opening_token(tokenizer))
    if own:
        return _own_loss(model, tokenizer, data, parent=policy.where)
    from trl.trainer.sft_config import SFTConfig as Arguments  # here: TRL takes seconds to import

    from llmlab.training.trainers.sft import SFTTrainer

    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(Arguments, max_length=length, dataset_kwargs={"skip_prepare_dataset": True}),
        trainer=partial(
            SFTTrainer, data_collator=PackedCollator(tokenizer.pad_token_id, bounds=takes_bounds(model))
        ),
        parent=policy.where,
    )


def _own_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Prepared, parent: str | None
) -> Job:
    """The job of the lab's own model, whose loss never holds all logits."""
    collator = PackedCollator(tokenizer.pad_token_id, bounds=takes_bounds(model))
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=TrainingArguments,
        trainer=partial(BaseTrainer, data_collator=collator),
        parent=parent,
    )


def _row_length(config: PretrainConfig, model: PreTrainedModel, reporter: Reporter) -> int:
    """Returns the tokens of a row; says so where it is not the model's whole context."""
    if config.model is not None and config.max_length is None:
        return model_config(config).max_seq_len
    context = context_length(model)
    length = config.row_length(context)
    if config.max_length is None and length != context:
        told = f"the model's context is {context:,}" if context else "the model names no context length"
        reporter.note(f"rows of {length:,} tokens ({told}); `max_length` sets another length")
    refuse_rows_beyond_positions(model, length)
    return length


def _leaks_somehow(model: PreTrainedModel) -> bool:
    """Returns whether packed documents see each other; architectures that take no positions cannot tell them
    apart.
    """
    try:
        return packing_leaks(model)
    except (TypeError, ValueError):
        return True


def _leaks(config: PretrainConfig, model: PreTrainedModel) -> LabError:
    backend = f'`attention_backend` "{config.attention_backend}"'
    if isinstance(model, LabForCausalLM) or takes_bounds(model):
        return LabError(f"{backend} lets packed documents attend to each other", remedy='use "sdpa"')
    return LabError(
        f"{model.config.model_type} models let packed documents attend to each other with {backend}",
        remedy='try "sdpa" or "eager"; models that mix tokens otherwise cannot be trained on packed text',
    )


def _refuse_flash_alibi(config: PretrainConfig, about: object) -> None:
    if config.attention_backend == "flash" and getattr(about, "positional_encoding", "") == "alibi":
        raise LabError(
            '`attention_backend` "flash" cannot add the bias of alibi', remedy='use "sdpa" or "flex"'
        )


def _refuse_other_architecture(model: PreTrainedModel, shape: ModelConfig, start: str) -> None:
    """Refuses a `model` beside `init_from` that is another one.

    Raises:
        LabError: with what to leave out.
    """
    same = isinstance(model, LabForCausalLM) and to_model_config(model.config, shape.tokenizer_name) == shape
    if not same:
        raise LabError(
            "is not of the architecture in `model`",
            where=start,
            remedy="leave `model` out: what is trained further has an architecture of its own",
        )


def model_config(config: PretrainConfig) -> ModelConfig:
    """Returns the model config of a run, read from its file where it is not inline."""
    if isinstance(config.model, ModelConfig):
        return config.model
    assert config.model is not None
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

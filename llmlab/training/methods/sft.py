"""Supervised fine-tuning: next-token cross-entropy on the assistant's tokens, through TRL."""

from __future__ import annotations

from functools import partial

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig as Arguments

from llmlab.config import SFTConfig
from llmlab.data.conversations import sft_data
from llmlab.data.packing import PackedCollator, takes_bounds
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.errors import LabError
from llmlab.models.load import stop_at_turn_ends
from llmlab.models.policy import load_policy
from llmlab.models.resolve import ModelRef, resolve_model
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.padding_free import packing_leaks
from llmlab.training.trainers.sft import Seq2SeqTrainer, SFTTrainer


def prepare(config: SFTConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a fine-tuning run.

    Raises:
        LabError: when the policy or the data do not load, or packed rows would leak in this architecture.
    """
    policy = resolve_model(config.policy_checkpoint)
    model, tokenizer = load_policy(policy, config, device, precision)
    if model.config.is_encoder_decoder:
        return _encoder_decoder(config, policy, model, tokenizer)
    ensure_chat_template(tokenizer, config.chat_template)
    stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    data = sft_data(config, tokenizer)
    if config.packing and packing_leaks(model):
        raise LabError(
            f"`packing`: {type(model).__name__} lets packed rows attend to each other with this attention"
            " backend",
            remedy="set it to false",
        )
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            Arguments, max_length=config.max_length, dataset_kwargs={"skip_prepare_dataset": True}
        ),
        trainer=partial(
            SFTTrainer, data_collator=PackedCollator(tokenizer.pad_token_id, bounds=takes_bounds(model))
        ),
        parent=policy.where,
    )


def _encoder_decoder(
    config: SFTConfig, policy: ModelRef, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Job:
    """The job for T5, BART and their like."""
    kind = f"{config.policy_checkpoint} is an encoder-decoder ({model.config.model_type})"
    if config.packing:
        raise LabError(f"`packing`: {kind}, whose rows cannot be packed", remedy="set it to false")
    if config.loss_on == "all":
        raise LabError(
            f'`loss_on` "all": {kind}, which reads the prompt and learns the answer',
            remedy='set it to "assistant"',
        )
    if any(source.streaming for source in config.datasets):
        raise LabError(
            f"`streaming`: {kind}, for which rows are stored", where="datasets", remedy="set it to false"
        )
    ensure_chat_template(tokenizer, config.chat_template, seq2seq=True)
    stop_at_turn_ends(model, tokenizer)
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=sft_data(config, tokenizer, seq2seq=True),
        arguments=transformers.Seq2SeqTrainingArguments,
        trainer=partial(Seq2SeqTrainer, data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model)),
        parent=policy.where,
    )

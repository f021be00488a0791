"""Reward models: a scalar head on a checkpoint, trained on pairs (Ouyang et al. 2022, eq. 1), through TRL.

loss = -log sigmoid(r(x, y+) - r(x, y-)) + c (r(x, y+) + r(x, y-))^2
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from rich.console import Console
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmlab.config import RewardConfig
from llmlab.data.prepare import dpo_data
from llmlab.data.rendering import render
from llmlab.data.schemas import Messages
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.models.adapters import set_dropout
from llmlab.models.identity import check_base
from llmlab.models.limits import check_adapter, check_files, refuse_pickles
from llmlab.models.load import add_adapter, loading_kwargs, refuse_code, refuse_kernel, safely, whole
from llmlab.runs.folder import find_model
from llmlab.training.engine.job import Job
from llmlab.training.held_out import pair_weights
from llmlab.training.trainers.base import LabTrainerMixin


class RewardTrainer(LabTrainerMixin, trl.RewardTrainer):
    """TRL's trainer on pairs that are tokenised already.

    Args:
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        **kwargs: of TRL's trainer.
    """

    def __init__(self, *args: Any, adapter_dropout: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        set_dropout(self.model, adapter_dropout)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns the pairs of a batch, and its tokens for what is a mean over tokens."""
        return pair_weights(inputs)


def prepare(config: RewardConfig, device: str, precision: str, console: Console) -> Job:
    """Returns the job of a reward run.

    Raises:
        LabError: when the checkpoint or the data do not load.
    """
    tokenizer = load_tokenizer(find_model(config.policy_checkpoint))
    ensure_chat_template(tokenizer)
    data = dpo_data(config, tokenizer)
    data.train, data.eval = (
        whole_rows(data.train),
        {name: whole_rows(rows) for name, rows in data.eval.items()},
    )
    torch.manual_seed(config.seed)  # of the new head
    model = load_scorer(
        config.policy_checkpoint, pad=tokenizer.pad_token_id, **loading_kwargs(config, device, precision)
    )
    model = add_adapter(model, config, task="SEQ_CLS")
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            trl.RewardConfig,
            max_length=config.max_length,
            center_rewards_coefficient=config.center_rewards or None,
        ),
        trainer=partial(RewardTrainer, adapter_dropout=config.adapter_dropout),
        parent=find_model(config.policy_checkpoint),
    )


def whole_rows(rows: Any) -> Any:
    """Returns pairs as two whole conversations each,
    `chosen_ids` and `rejected_ids` with the prompt before them.
    """
    made = rows.map(
        lambda row: {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")},
        remove_columns=["prompt_ids"],
    )
    return made


def load_scorer(name: str, *, pad: int | None = None, **kwargs: Any) -> PreTrainedModel:
    """Returns a model that scores a text with one number: a reward model, or a checkpoint with a new head.

    Raises:
        LabError: when it does not load, or scores with more than one number.
    """
    where = find_model(name)
    path = Path(where)
    if path.exists():
        where = str(path := path.resolve())
    check_files(path)
    refuse_pickles(path)
    try:
        if path.suffix == ".gguf":
            model = AutoModelForSequenceClassification.from_pretrained(
                str(path.parent), gguf_file=path.name, num_labels=1, **kwargs
            )
            model.name_or_path = model.config.name_or_path = where
            model.is_quantized, model.hf_quantizer = False, None
            model.config.__dict__.pop("quantization_config", None)
        elif (path / "adapter_config.json").is_file():
            from peft import PeftConfig, PeftModel

            adapter = PeftConfig.from_pretrained(where)
            base_name = adapter.base_model_name_or_path
            check_base(path, base_name)
            base = whole(load_scorer(base_name, pad=pad, **kwargs), base_name)
            check_adapter(path, [name for name, _ in base.named_modules()])
            if adapter.task_type == "SEQ_CLS":
                model = PeftModel.from_pretrained(base, where, is_trainable=True)
            else:
                # of a policy: it has no scoring head, which has to learn, so it becomes part of the weights
                adapter.task_type = None
                model = whole(PeftModel.from_pretrained(base, where, config=adapter), name)
        else:
            if kernel := kwargs.get("attn_implementation"):
                about = AutoConfig.from_pretrained(where, trust_remote_code=safely(name)["trust_remote_code"])
                refuse_kernel(about, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, kernel, name)
            model = AutoModelForSequenceClassification.from_pretrained(
                where, num_labels=1, **safely(name), **kwargs
            )
    except LabError:
        raise
    except Exception as error:  # the libraries raise many kinds for one situation: these files are no model
        refuse_code(error, name)
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LabError(f"holds no model that can score ({text})", where=name) from None
    if pad is not None:
        model.config.pad_token_id = pad
    return model


@torch.no_grad()
def scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Messages],
    *,
    batch_size: int = 32,
) -> list[float]:
    """Returns the score of each conversation (a prompt and an answer), as text in the reward model's own
    template and tokens.

    Encoder reward models without a template read prompt and answer as a pair of texts.
    """
    model.eval()
    found: list[float] = []
    limit = (
        getattr(model.config, "max_position_embeddings", None)
        or getattr(model.config, "max_seq_len", None)
        or 4096
    )
    for start in range(0, len(conversations), batch_size):
        part = conversations[start : start + batch_size]
        if tokenizer.chat_template:
            texts = [render(tokenizer, turns).rstrip("\n") for turns in part]
            encoded = tokenizer(
                texts,
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=limit,
                add_special_tokens=False,
                return_tensors="pt",
            )
        else:
            prompts = ["\n".join(turn["content"] for turn in turns[:-1]) for turns in part]
            answers = [turns[-1]["content"] for turns in part]
            encoded = tokenizer(
                prompts, answers, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
        inputs = {
            name: value.to(model.device)
            for name, value in encoded.items()
            if name != "token_type_ids" or value.any()
        }
        found += model(**inputs).logits[:, 0].float().tolist()
    return found

"""Direct preference optimisation through TRL (Rafailov et al. 2023, eq. 7).

loss = -log sigmoid(beta * [(log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))])
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import trl
from peft import PeftModel

from llmlab.config import DPOConfig
from llmlab.data.prepare import dpo_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.runs.folder import find_model
from llmlab.train.engine import Job, LabTrainerMixin
from llmlab.train.loading import load_model, load_policy
from llmlab.train.sft import name_parts


class DPOTrainer(LabTrainerMixin, trl.DPOTrainer):
    """TRL's trainer on pairs that are tokenised already, so that what is counted as answer is decided in one place."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def prepare(config: DPOConfig, device: str, precision: str) -> Job:
    """Returns the job of a preference run.

    Raises:
        LabError: when policy, reference or data do not load.
    """
    model, tokenizer = load_policy(config, device, precision)
    model.generation_config.eos_token_id = ensure_chat_template(tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    data = dpo_data(config, tokenizer)
    reference = None  # none: the policy itself, before its first step or without its adapter
    if config.reference_checkpoint:
        reference = load_model(config.reference_checkpoint, dtype=model.dtype)[0]
    elif config.reference == "live" and not isinstance(model, PeftModel):
        reference = copy.deepcopy(model)
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            trl.DPOConfig,
            beta=config.beta,
            loss_type=[config.loss_type],
            max_length=config.max_length,
            precompute_ref_log_probs=config.reference == "sequential",
        ),
        trainer=partial(DPOTrainer, ref_model=reference),
        parent=find_model(config.policy_checkpoint),
        name_parts=name_parts(config),
    )

"""Proximal policy optimisation with a real critic (Schulman et al. 2017; for language models Ouyang et al.
2022).

    answers     y ~ pi_old(. | x), one to every prompt
    reward      r_t = -kl_coef (log pi_old - log ref)_t, plus the score of y at its last token
    advantage   A_t = sum over l of (gamma lambda)^l delta_{t+l}, whitened;
                delta_t = r_t + gamma V_{t+1} - V_t
    return      R_t = A_t + V_t, before whitening
    policy      -min(ratio A, clip(ratio, 1 +- clip_range) A),  ratio = pi / pi_old
    value       1/2 max((V - R)^2, (clip(V, V_old +- value_clip_range) - R)^2)
    loss        mean over the tokens of a mini-batch of [ policy + vf_coef * value ]

One backbone serves policy and critic. The reference is the policy as it was at the start: a frozen copy of
the model, or of its adapter on the same backbone. The formulas are in `training/advantages.py`, the loop in
`training/trainers/ppo.py`.
"""

from __future__ import annotations

from functools import partial

from transformers import TrainingArguments

from llmlab.config import PPOConfig
from llmlab.data.prompts import prompts_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.models.adapters import frozen_copy
from llmlab.models.load import stop_at_turn_ends
from llmlab.models.policy import load_policy
from llmlab.models.resolve import resolve_model
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.rewards import refuse_untrusted, reward_function
from llmlab.training.rollouts import Reward
from llmlab.training.trainers.ppo import PPOTrainer
from llmlab.training.vllm import answering, refuse_vllm


def prepare(config: PPOConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a PPO run.

    Raises:
        LabError: when policy, rewards or prompts do not load, a reward of the person's own was not agreed
            to, or vLLM cannot write the answers.
    """
    refuse_untrusted(config.reward_model)
    policy = resolve_model(config.policy_checkpoint)
    refuse_vllm(config, policy, device)
    functions = [reward_function(source, device) for source in config.reward_model]
    rewards = [
        Reward(function.__name__, source.weight, function)
        for source, function in zip(config.reward_model, functions, strict=True)
    ]
    model, tokenizer = load_policy(policy, config, device, precision)
    ensure_chat_template(tokenizer)
    ends = stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=prompts_data(config, tokenizer),
        arguments=TrainingArguments,
        trainer=partial(
            PPOTrainer,
            config=config,
            rewards=rewards,
            reference=frozen_copy(model) if config.kl_coef else None,
            ends=ends,
            vllm=answering(config, policy, config.temperature, ends),
        ),
        parent=policy.where,
    )

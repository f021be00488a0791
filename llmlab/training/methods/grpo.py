"""Group-relative policy optimisation through TRL (Shao et al. 2024, eq. 3).

For each prompt `group_size` answers; advantage = (reward - group mean) / (group std + 1e-4); the clipped
ratio loss of PPO on every token of an answer, averaged over all tokens of the batch; optionally beta times
the KL estimate to the reference, which is multiplied by the ratio as well: so its gradient is that of the KL
itself (DeepSeek-V3.2, 2025).
"""

from __future__ import annotations

from functools import partial

from trl.trainer.grpo_config import GRPOConfig as Arguments

from llmlab.config import GRPOConfig
from llmlab.data.prompts import prompts_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.models.adapters import frozen_copy
from llmlab.models.load import stop_at_turn_ends
from llmlab.models.policy import load_policy
from llmlab.models.resolve import resolve_model
from llmlab.training.engine.distributed import processes
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.rewards import refuse_untrusted, reward_function
from llmlab.training.trainers.grpo import GRPOTrainer
from llmlab.training.vllm import answering, refuse_vllm


def prepare(config: GRPOConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a GRPO run.

    Raises:
        LabError: when policy, rewards or prompts do not load, a reward of the person's own was not agreed
            to, or vLLM cannot write the answers.
    """
    refuse_untrusted(config.reward_model)
    policy = resolve_model(config.policy_checkpoint)
    refuse_vllm(config, policy, device)
    rewards = [reward_function(source, device) for source in config.reward_model]
    model, tokenizer = load_policy(policy, config, device, precision)
    tokenizer.padding_side = "left"
    ensure_chat_template(tokenizer)
    ends = stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    data = prompts_data(config, tokenizer)
    has_reference = config.beta > 0
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            Arguments,
            beta=0.0,  # the reference is handed to the trainer, which then sets it
            num_generations=config.group_size,
            num_generations_eval=1,
            generation_batch_size=config.batch_size * processes(),  # TRL counts all processes
            max_completion_length=config.max_new_tokens,
            temperature=config.grpo_temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            epsilon=config.clip_range,
            num_iterations=config.iterations,
            reward_weights=[source.weight for source in config.reward_model],
            generation_kwargs={"eos_token_id": ends},
        ),
        trainer=partial(
            GRPOTrainer,
            reward_funcs=rewards,
            has_reference=has_reference,
            reference=frozen_copy(model) if has_reference else None,
            kl_weight=config.beta,
            adapter_dropout=config.adapter_dropout,
            vllm=answering(config, policy, config.grpo_temperature, ends),
        ),
        parent=policy.where,
    )

"""The kinds of configs and what they are called, for whoever lists them without loading them."""

TITLES = {
    "model": "Model architecture",
    "pretrain": "Base training",
    "sft": "Supervised fine-tuning (SFT)",
    "reward": "Reward model",
    "dpo": "Direct preference optimisation (DPO)",
    "grpo": "Group-relative policy optimisation (GRPO)",
    "ppo": "Proximal policy optimisation (PPO)",
    "dual_head": "Dual head (alignment at generation time)",
    "evaluation": "Evaluation",
}

"""The table of stages: what can be trained, by which module, and what naturally comes next. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.titles import TITLES


@dataclass(frozen=True)
class Stage:
    """One way of training.

    Attributes:
        kind: of its config.
        module: whose `prepare(config, device, precision, reporter)` returns a `Job`.
        needs: what it starts from, in words; "" when from nothing.
        then: kinds of the natural next steps.
        section: part of the menu.
        shapes: of the rows that it learns from.
        data: what a row has to hold, in words.
        memory: in copies of the model, with full weights and with an adapter.
        speed: of an update, beside an SFT update on as many tokens.
        when: to choose it.
    """

    kind: str
    module: str
    needs: str
    then: tuple[str, ...]
    section: str
    shapes: tuple[str, ...]
    data: str
    memory: str
    speed: str
    when: str

    @property
    def title(self) -> str:
        """The stage's name for a menu."""
        return TITLES[self.kind]


PROMPTS = ("prompt_answer", "messages", "prompt_completion", "preference", "prompt")
STAGES: dict[str, Stage] = {
    stage.kind: stage
    for stage in (
        Stage(
            "pretrain",
            "llmlab.training.methods.pretrain",
            "",
            ("sft",),
            "training",
            ("text",),
            data="plain text, as much as there is",
            memory="4 copies with AdamW; of an existing model with LoRA 1, with QLoRA about 1/4",
            speed="1",
            when="there is no model yet, or none trained on your kind of text",
        ),
        Stage(
            "sft",
            "llmlab.training.methods.sft",
            "a base model or a fine-tuned one",
            ("dpo", "reward", "grpo", "ppo", "dual_head"),
            "training",
            ("messages", "prompt_completion"),
            data="good answers: conversations, prompt + completion",
            memory="4 copies; with LoRA 1, with QLoRA about 1/4",
            speed="1",
            when="always first: the other methods only sharpen what a model can already do",
        ),
        Stage(
            "reward",
            "llmlab.training.methods.reward",
            "a fine-tuned model",
            ("grpo", "ppo"),
            "alignment",
            ("preference",),
            data="pairs: a better and a worse answer to each prompt",
            memory="as SFT",
            speed="1/2: both answers are read",
            when="GRPO or PPO need scores that no rule can give",
        ),
        Stage(
            "dpo",
            "llmlab.training.methods.dpo",
            "a fine-tuned model",
            (),
            "alignment",
            ("preference",),
            data="pairs: a better and a worse answer to each prompt",
            memory="as SFT: the reference is scored first and then freed (live: 1 copy more)",
            speed="1/2; no generation",
            when="there are pairs: the simplest and most stable alignment",
        ),
        Stage(
            "grpo",
            "llmlab.training.methods.grpo",
            "a fine-tuned model",
            (),
            "alignment",
            PROMPTS,
            data="prompts and a reward: a rule that checks, a function, a reward model",
            memory="as SFT, 1 copy more with beta above 0 and no adapter; the reward model",
            speed="1/10 to 1/50: answers are generated, several to each prompt",
            when="answers can be checked: mathematics, code, labels, formats",
        ),
        Stage(
            "ppo",
            "llmlab.training.methods.ppo",
            "a fine-tuned model",
            (),
            "alignment",
            PROMPTS,
            data="prompts and a reward",
            memory=(
                "as SFT, 1 copy more with a KL weight and no adapter; the critic shares the backbone; the"
                " reward model"
            ),
            speed="1/10 to 1/50: answers are generated",
            when="rewards are noisy or come late in long answers; most settings, most care",
        ),
        Stage(
            "dual_head",
            "llmlab.training.methods.dual_head",
            "a fine-tuned model",
            (),
            "alignment",
            ("preference", "messages", "prompt_completion"),
            data="pairs: a better and a worse answer to each prompt; also answers alone",
            memory="1 copy, frozen (4 bit: 1/4), and two heads with their optimizer",
            speed="about 1 for large models: no gradient through the backbone",
            when=(
                "alignment is to be turned up and down while the model talks, or the backbone must stay as"
                " it is"
            ),
        ),
    )
}

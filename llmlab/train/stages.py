"""The table of stages: what can be trained, by which module, and what naturally comes next. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.config import KINDS


@dataclass(frozen=True)
class Stage:
    """One way of training.

    Attributes:
        kind: of its config.
        module: whose `prepare(config, device, precision)` returns a `Job`.
        needs: what it starts from, in words; "" when from nothing.
        then: kinds of the natural next steps.
        section: part of the menu.
        shapes: of the rows that it learns from.
    """

    kind: str
    module: str
    needs: str
    then: tuple[str, ...]
    section: str
    shapes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The stage's name for a menu."""
        return KINDS[self.kind].TITLE


PROMPTS = ("prompt_answer", "messages", "prompt_completion", "preference")
STAGES: dict[str, Stage] = {
    stage.kind: stage
    for stage in (
        Stage("pretrain", "llmlab.train.pretrain", "", ("sft",), "training", ("text",)),
        Stage(
            "sft", "llmlab.train.sft", "a base model", ("dpo", "reward", "grpo"), "training", ("messages", "prompt_completion")
        ),
        Stage("reward", "llmlab.train.reward", "a fine-tuned model", ("grpo",), "alignment", ("preference",)),
        Stage("dpo", "llmlab.train.dpo", "a fine-tuned model", (), "alignment", ("preference",)),
        Stage("ppo", "llmlab.train.ppo", "a fine-tuned model", (), "alignment", PROMPTS),
        Stage("grpo", "llmlab.train.grpo", "a fine-tuned model", (), "alignment", PROMPTS),
    )
}

"""What an answer is worth, as small pure functions. No torch."""

from llmlab.rewards.builtin import BUILT_IN, Answer

__all__ = ["BUILT_IN", "Answer"]

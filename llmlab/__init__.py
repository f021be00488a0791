"""llmlab: from an empty machine to an aligned chat model, in a terminal."""

__version__ = "0.1.0"

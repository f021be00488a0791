"""llmlab: from an empty machine to an aligned chat model, in a terminal."""

from llmlab.deferred import defer_import

__version__ = "0.1.0"

defer_import("bitsandbytes")  # before anything imports peft

"""The options of the architecture and their defaults: those of `llmlab.config.ModelConfig`.

An exported model brings its code without the rest of the lab; there, this module is a table written out.
"""

from __future__ import annotations

from llmlab.config import ModelConfig

NOT_ARCHITECTURE = ("kind", "schema_version", "tokenizer_name")
DEFAULTS: dict[str, str | int | float | bool | None] = {
    name: field.default for name, field in ModelConfig.model_fields.items() if name not in NOT_ARCHITECTURE
}

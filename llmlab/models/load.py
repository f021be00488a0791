"""Loading what is trained: tokenizer and model of a checkpoint, adapters, quantisation, device, precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmlab.data.cache import cached
from llmlab.data.rendering import turn_ends
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.files import cache_root, read_object
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.adapters import whole, without_adapter
from llmlab.models.device import refuse_kernel
from llmlab.models.headers import checkpoint_shape
from llmlab.models.identity import check_base, weights_fingerprint
from llmlab.models.limits import bounded_generation, check_adapter, check_files, refuse_pickles
from llmlab.models.resolve import ModelRef, refuse_architecture, resolve_model
from llmlab.models.typed import LanguageModel
from llmlab.runs.folder import find_model
from llmlab.trust import TRUSTED

Use = Literal["write", "score"]  # what a model's head is for
HEAD: dict[Use, dict[str, int]] = {"write": {}, "score": {"num_labels": 1}}
DUAL_HEAD = LabDualHeadConfig.model_type


def refuse_what_cannot_write(where: str) -> None:
    """Refuses checkpoints of encoders and of reward models.

    Raises:
        LabError: with the reason.
    """
    try:
        model_config = read_object(Path(where) / "config.json")
    except (OSError, ValueError):
        return
    refuse_architecture(model_config, where, "chat")


def load_model(name: str | ModelRef, **kwargs: Any) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """Returns model and tokenizer of a run, a folder, a GGUF file or a hub id; adapters are attached, not
    merged.

    Args:
        name: as a person gives it, or what it was found to be.
        **kwargs: for `from_pretrained` (dtype, attn_implementation, quantization_config ...).

    Raises:
        LabError: when there is no such model, or it cannot be read.
    """
    ref = resolve_model(name)
    _check(ref, "write")
    tokenizer = load_tokenizer(str(ref.path))
    model = cast(LanguageModel, _load(ref, "write", **kwargs))
    stop_at_turn_ends(model, tokenizer)
    return model, tokenizer


def load_scorer(name: str | ModelRef, *, pad: int | None = None, **kwargs: Any) -> PreTrainedModel:
    """Returns a model that scores a text with one number: a reward model, or a checkpoint with a new head.

    Args:
        name: as a person gives it, or what it was found to be.
        pad: id of the token that fills rows, behind which the score is read.
        **kwargs: for `from_pretrained`.

    Raises:
        LabError: when it does not load, or scores with more than one number.
    """
    ref = resolve_model(name)
    _check(ref, "score")
    model = _load(ref, "score", **kwargs)
    if pad is not None:
        model.config.pad_token_id = pad
    return model


def _check(ref: ModelRef, use: Use) -> None:
    """Looks at the files of a model before any is loaded."""
    check_files(ref.path)
    if use == "write":
        refuse_what_cannot_write(str(ref.path))
    refuse_pickles(ref.path)


def _load(ref: ModelRef, use: Use, **kwargs: Any) -> PreTrainedModel:
    """Returns a model with a head for its use; what the libraries raise becomes one message.

    Raises:
        LabError: when it cannot be read.
    """
    try:
        if ref.kind == "gguf":
            return _from_gguf(ref, use, **kwargs)
        if ref.kind == "adapter":
            return _from_adapter(ref, use, **kwargs)
        return _from_weights(ref, use, **kwargs)
    except ImportError as error:
        raise LabError(
            str(error).strip().splitlines()[0], where=ref.name, remedy="`llmlab doctor` says what is missing"
        ) from None
    except LabError:
        raise
    except Exception as error:  # the libraries raise many kinds for one situation: these files are no model
        refuse_code(error, ref.name)
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if use == "score":
            raise LabError(f"cannot load a model that scores from it ({text})", where=ref.name) from None
        if ref.kind == "hub":
            raise LabError(
                f"is not on this machine and could not be downloaded from the hub ({text})",
                where=ref.name,
                remedy="use a local run or folder",
            ) from None
        raise LabError(f"cannot load a model from it ({text})", where=ref.name) from None


def _from_weights(ref: ModelRef, use: Use, **kwargs: Any) -> PreTrainedModel:
    where, safe = str(ref.path), safely(ref.name)
    model_config = AutoConfig.from_pretrained(where, trust_remote_code=safe["trust_remote_code"])
    if use == "write" and model_config.model_type == DUAL_HEAD:
        check_base(ref.path, model_config.backbone, made="heads")
        backbone = without_adapter(load_model(model_config.backbone, **kwargs)[0])
        return LabDualHeadForCausalLM.from_pretrained(where, config=model_config, backbone=backbone)
    auto, classes = _auto_class(model_config, use)
    refuse_kernel(model_config, classes, kwargs.get("attn_implementation"), ref.name)
    model = auto.from_pretrained(where, **HEAD[use], **safe, **kwargs)
    return equal_4bit_products(model) if "quantization_config" in kwargs else model


def _auto_class(model_config: PreTrainedConfig, use: Use) -> tuple[Any, Any]:
    """Returns transformers' class for a use, and its table of architectures."""
    if use == "score":
        return AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if model_config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING


def _from_gguf(ref: ModelRef, use: Use, **kwargs: Any) -> PreTrainedModel:
    path = ref.path
    auto = AutoModelForSequenceClassification if use == "score" else AutoModelForCausalLM
    quantised = "quantization_config" in kwargs  # transformers quantises folders only
    wanted = kwargs.get("dtype")
    dtype = torch.float16 if quantised else wanted if isinstance(wanted, torch.dtype) else torch.float32
    if quantised or _has_room(path, dtype):
        model = auto.from_pretrained(unpacked(path, dtype), **HEAD[use], **safely(ref.name), **kwargs)
    else:
        model = auto.from_pretrained(str(path.parent), gguf_file=path.name, **HEAD[use], **kwargs)
        # the weights are plain floats now; marks of quantisation would forbid training and saving
        unmark(model)
    if quantised:
        model = equal_4bit_products(model)
    model.name_or_path = model.config.name_or_path = str(path)
    return model


def _from_adapter(ref: ModelRef, use: Use, **kwargs: Any) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel

    where = str(ref.path)
    adapter = PeftConfig.from_pretrained(where)
    base_name = adapter.base_model_name_or_path
    check_base(ref.path, base_name)
    base = load_scorer(base_name, **kwargs) if use == "score" else load_model(base_name, **kwargs)[0]
    base = whole(base, base_name)
    check_adapter(ref.path, [name for name, _ in base.named_modules()])
    if use == "write" or adapter.task_type == "SEQ_CLS":
        adapted = PeftModel.from_pretrained(base, where, is_trainable=True)
        return cast(PreTrainedModel, adapted)  # a wrapper that hands everything through
    # of a policy: it has no scoring head, which has to learn, so it becomes part of the weights
    adapter.task_type = None
    return whole(PeftModel.from_pretrained(base, where, config=adapter), ref.name)


def equal_4bit_products(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model, its 4-bit layers computing the same product in training and in evaluation.

    On processors with AVX512-BF16 bitsandbytes repacks the weights at the first product in evaluation mode
    and multiplies in bf16 from then on: held-out losses and a reference's log-probabilities differ from those
    in training, and the repacked weights pass no gradient back when training goes on.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def stop_at_turn_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Lets a model's answers end where its chat template ends a turn, beside its own ends; returns all of
    them.

    Of the rest of its generation config no more is kept than the lab knows.
    """
    model.generation_config = bounded_generation(model.generation_config)
    own = model.generation_config.eos_token_id
    own = [own] if isinstance(own, int) else list(own or ())
    ends = list(dict.fromkeys([*(turn_ends(tokenizer) if tokenizer.chat_template else []), *own]))
    if ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return ends


def is_backbone_of(name: str, model: PreTrainedModel) -> bool:
    """Returns whether a name stands for the backbone of a dual-head model."""
    if not isinstance(model, LabDualHeadForCausalLM):
        return False
    one, other = Path(find_model(name)), Path(model.config.backbone)
    return str(one) == str(other) or (one.exists() and other.exists() and one.resolve() == other.resolve())


def safely(name: str) -> dict[str, bool]:
    """Returns how weights are loaded: never from a pickle,
    and with a repository's own code only when its name was typed.
    """
    return {"use_safetensors": True, "trust_remote_code": name in TRUSTED}


def refuse_code(error: Exception, name: str) -> None:
    """Turns transformers' refusal of a repository's own code into ours.

    Raises:
        LabError: when `error` is that.
    """
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        raise LabError(
            "has custom code, which was not run",
            where=name,
            remedy=f"read it; `llmlab run CONFIG --trust {name}` runs it",
        ) from None


def unmark(model: PreTrainedModel) -> None:
    """Takes the marks of quantisation off a model whose weights are plain floats."""
    plain: Any = model  # attributes that transformers sets without declaring them
    plain.is_quantized, plain.hf_quantizer = False, None
    model.config.__dict__.pop("quantization_config", None)


def unpacked(gguf: Path, dtype: torch.dtype) -> Path:
    """Returns a folder with the weights of a GGUF file as plain floats, made once and kept in the cache: the
    file takes transformers 6 to 20 times as long to read.

    Args:
        gguf: the file.
        dtype: of the floats; in fp32 they equal those of the file to the bit.
    """

    def build(folder: Path) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
        unmark(model)
        cast(Any, model).to(dtype).save_pretrained(folder)
        return {"from": str(gguf)}

    key = {"method": "gguf", "dtype": str(dtype), "transformers": transformers.__version__}
    return cached({**key, "weights": weights_fingerprint(str(gguf))}, build)[0]


def _has_room(gguf: Path, dtype: torch.dtype) -> bool:
    """Returns whether the cache's disk has twice the room that the unpacked weights take."""
    shape = checkpoint_shape(str(gguf))
    try:
        place = next(folder for folder in (cache_root(), *cache_root().parents) if folder.exists())
        free = shutil.disk_usage(place).free
    except (OSError, StopIteration):
        return False
    return shape is not None and free > 2 * shape.parameters * dtype.itemsize

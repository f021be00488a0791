"""Loading what is trained: tokenizer and model of a checkpoint, adapters, quantisation, device, precision."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
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

from llmlab.config import LabBaseConfig
from llmlab.data.cache import cached
from llmlab.data.rendering import turn_ends
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.adapters import without_adapter
from llmlab.models.identity import check_base, weights_fingerprint
from llmlab.models.limits import bounded_generation, check_adapter, check_files, refuse_pickles
from llmlab.models.resolve import ModelRef, refuse_architecture, resolve_model
from llmlab.runs.folder import find_model
from llmlab.trust import TRUSTED

Use = Literal["write", "score"]  # what a model's head is for
HEAD: dict[Use, dict[str, int]] = {"write": {}, "score": {"num_labels": 1}}
DUAL_HEAD = LabDualHeadConfig.model_type
GROUPS = {
    "attention": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "out_proj",
        "c_attn",
        "query_key_value",
        "q",
        "k",
        "v",
        "o",
    ),
    "ffn": ("gate_proj", "up_proj", "down_proj", "c_fc", "fc1", "fc2", "wi", "wi_0", "wi_1", "wo"),
}

# a mixture's routers stay as they are: moved by an adapter, tokens would reach experts that never saw their
# like
ROUTERS = r".*(^|\.)(router|gate|shared_expert_gate)$"


def choose_device(wanted: str) -> str:
    """Returns "cuda", "mps" or "cpu".

    Raises:
        LabError: when the wanted device is not there.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in found.items() if there)
    if not found[wanted]:
        raise LabError(f"`device` {wanted!r} is not on this machine", remedy='use "auto" or "cpu"')
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """Returns "fp32", "bf16" or "fp16".

    Raises:
        LabError: when the device cannot compute in the wanted one.
    """
    if wanted == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise LabError('`precision` "fp16" needs a GPU', remedy='use "fp32" or "bf16"')
    return wanted


def attention_kernel(config: LabBaseConfig, device: str) -> str | None:
    """Returns the name that transformers has for the attention backend; None lets it take sdpa where the
    model supports it, else eager.

    On MPS "auto" is eager: sdpa gives NaN there for rows with padding.

    Raises:
        LabError: when flash attention is asked for and its package is missing, or flex attention on a
            processor.
    """
    kernel = {"flex": "flex_attention", "flash": "flash_attention_2"}.get(
        config.attention_backend, config.attention_backend
    )
    if kernel == "auto":
        return "eager" if device == "mps" else None
    if kernel == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            raise LabError(
                '`attention_backend` "flash" needs the flash-attn package and a GPU', remedy='use "sdpa"'
            )
    if kernel == "flex_attention" and device == "cpu":
        raise LabError(
            '`attention_backend` "flex" needs a GPU: PyTorch has no backward pass of it for processors',
            remedy='use "sdpa"',
        )
    return kernel


# transformers' name of a kernel -> the class attribute that says whether a model supports it, and our name of
# the kernel
KERNELS = {
    "sdpa": ("_supports_sdpa", "sdpa"),
    "flex_attention": ("_supports_flex_attn", "flex"),
    "flash_attention_2": ("_supports_flash_attn", "flash"),
}


def refuse_kernel(about: PreTrainedConfig, classes: Any, kernel: str | None, where: str) -> None:
    """Refuses an attention backend that the architecture does not support.

    Args:
        about: the model's config.
        classes: transformers' mapping from configs to the classes of the task.
        kernel: transformers' name of the backend; None when it may choose.
        where: the model.

    Raises:
        LabError: with the backends that it supports.
    """
    if kernel not in KERNELS or type(about) not in classes:
        return
    cls = classes[type(about)]
    if not getattr(cls, KERNELS[kernel][0]):
        others = [name for flag, name in KERNELS.values() if getattr(cls, flag)]
        raise LabError(
            f'`attention_backend` "{KERNELS[kernel][1]}" is not supported by {about.model_type} models',
            where=where,
            remedy=f"use {' or '.join(['auto', *others, 'eager'])}",
        )


def attention_in_use(model: PreTrainedModel) -> str:
    """Returns transformers' name of the attention kernel that a model computes with,
    of a dual head its backbone's.
    """
    return str(getattr(model, "backbone", model).config._attn_implementation)


def refuse_what_cannot_write(where: str) -> None:
    """Refuses checkpoints of encoders and of reward models.

    Raises:
        LabError: with the reason.
    """
    try:
        about = read_object(Path(where) / "config.json")
    except (OSError, ValueError):
        return
    refuse_architecture(about, where, "chat")


def load_model(name: str | ModelRef, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
    model = _load(ref, "write", **kwargs)
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
                f"is not on this machine and the hub did not give it ({text})",
                where=ref.name,
                remedy="use a local run or folder",
            ) from None
        raise LabError(f"cannot load a model from it ({text})", where=ref.name) from None


def _from_weights(ref: ModelRef, use: Use, **kwargs: Any) -> PreTrainedModel:
    where, safe = str(ref.path), safely(ref.name)
    about = AutoConfig.from_pretrained(where, trust_remote_code=safe["trust_remote_code"])
    if use == "write" and about.model_type == DUAL_HEAD:
        check_base(ref.path, about.backbone, made="heads")
        backbone = without_adapter(load_model(about.backbone, **kwargs)[0])
        return LabDualHeadForCausalLM.from_pretrained(where, config=about, backbone=backbone)
    auto, classes = _auto_class(about, use)
    refuse_kernel(about, classes, kwargs.get("attn_implementation"), ref.name)
    model = auto.from_pretrained(where, **HEAD[use], **safe, **kwargs)
    return equal_4bit_products(model) if "quantization_config" in kwargs else model


def _auto_class(about: PreTrainedConfig, use: Use) -> tuple[Any, Any]:
    """Returns transformers' class for a use, and its table of architectures."""
    if use == "score":
        return AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if about.is_encoder_decoder:
        return AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING


def _from_gguf(ref: ModelRef, use: Use, **kwargs: Any) -> PreTrainedModel:
    path = ref.path
    auto = AutoModelForSequenceClassification if use == "score" else AutoModelForCausalLM
    if "quantization_config" in kwargs:  # transformers quantises folders only
        folder = unpacked(path)
        model = equal_4bit_products(auto.from_pretrained(folder, **HEAD[use], **safely(ref.name), **kwargs))
    else:
        model = auto.from_pretrained(str(path.parent), gguf_file=path.name, **HEAD[use], **kwargs)
        # the weights are plain floats now; marks of quantisation would forbid training and saving
        model.is_quantized, model.hf_quantizer = False, None
        model.config.__dict__.pop("quantization_config", None)
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
        return PeftModel.from_pretrained(base, where, is_trainable=True)
    # of a policy: it has no scoring head, which has to learn, so it becomes part of the weights
    adapter.task_type = None
    return whole(PeftModel.from_pretrained(base, where, config=adapter), ref.name)


def equal_4bit_products(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model, its 4-bit layers computing the same product in training and in evaluation.

    On processors with AVX512-BF16 bitsandbytes repacks the weights at the first product in evaluation mode
    and multiplies in bf16 from then on: held-out losses and a reference's log-probabilities differ from those
    in training, and the repacked weights pass no gradient back when training goes on.
    """
    from bitsandbytes.nn import Linear4bit

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


def whole(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Returns a model without adapters: one that it has is merged into the weights, as where the base of an
    adapter is one.

    Raises:
        LabError: when the weights are quantised, so that merging would round them.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        raise LabError(
            "is an adapter that would have to be merged into quantised weights, which rounds it",
            where=name,
            remedy=(
                f'merge it first (`llmlab merge {name}`), or load it unquantised: `adapter` "lora", `load_in`'
                ' "none"'
            ),
        )
    return model.merge_and_unload()


def safely(name: str) -> dict[str, bool]:
    """Returns how weights are loaded: never from a pickle,
    and with a repository's own code only when its name was typed.
    """
    return {"use_safetensors": True, "trust_remote_code": name in TRUSTED}


def refuse_code(error: Exception, name: str) -> None:
    """Turns the library's refusal of a repository's own code into ours.

    Raises:
        LabError: when `error` is that.
    """
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        raise LabError(
            "brings code of its own, which was not run",
            where=name,
            remedy=f"read it; `llmlab run CONFIG --trust {name}` runs it",
        ) from None


def unpacked(gguf: Path) -> Path:
    """Returns a folder with the weights of a GGUF file in 16 bits, made once and kept in the cache:
    to be quantised anew.
    """

    def build(folder: Path) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
        model.is_quantized, model.hf_quantizer = False, None
        model.config.__dict__.pop("quantization_config", None)
        model.half().save_pretrained(folder)
        return {"from": str(gguf)}

    return cached({"method": "gguf", "dtype": "fp16", "weights": weights_fingerprint(str(gguf))}, build)[0]


def add_adapter(model: PreTrainedModel, config: Any, *, task: str = "CAUSAL_LM") -> PreTrainedModel:
    """Returns the model with a LoRA adapter as the config says; one that has an adapter already goes on with
    it.

    Raises:
        LabError: when no module has the wanted names.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    if isinstance(model, PeftModel) or config.adapter == "none":
        return model
    if config.quantised != "none":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    targets = config.lora_targets
    routers = any(re.fullmatch(ROUTERS, name) for name, _ in model.named_modules())
    if targets in GROUPS:
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        targets = [name for name in GROUPS[targets] if name in names]
    elif targets == "all-linear" and routers:
        # spelled out: for some mixtures peft adds the routers to "all-linear", whatever is excluded
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        targets = sorted(
            {name.rsplit(".", 1)[-1] for name in linear if not re.fullmatch(ROUTERS, name)}
            - {"lm_head", "score"}
        )
    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                exclude_modules=ROUTERS if routers else None,
                task_type=task,
            ),
        )
    except ValueError as error:
        if "ParamWrapper" in str(error) and config.lora_dropout:
            raise LabError(
                f"`lora_dropout` {config.lora_dropout}: experts take no dropout, being whole tensors",
                remedy='set it to 0, or `lora_targets` to "attention"',
            ) from None
        raise LabError(
            f"`lora_targets` {config.lora_targets!r}: {str(error).splitlines()[0][:160]}"
        ) from None


def loading_kwargs(config: Any, device: str, precision: str) -> dict[str, Any]:
    """Returns how a policy, and the reference it is held to, are loaded: kernels, number format,
    quantisation.
    """
    kwargs: dict[str, Any] = {"attn_implementation": attention_kernel(config, device), "dtype": torch.float32}
    if config.frozen_base and config.quantised != "none":
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=config.quantised == "8bit",
            load_in_4bit=config.quantised == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
        local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
        kwargs["device_map"] = {"": local}
    elif config.frozen_base and precision == "bf16":
        kwargs["dtype"] = torch.bfloat16  # frozen weights need no fp32 copy
    return kwargs


def refuse_encoder_decoders(policy: ModelRef, kind: str) -> None:
    """Refuses policies in two parts for methods that train decoders.

    Raises:
        LabError: with what to do.
    """
    where = Path(policy.where)
    try:
        if policy.kind == "adapter":
            where = Path(str(read_object(where / "adapter_config.json")["base_model_name_or_path"]))
        about = read_object(where / "config.json")
    except (OSError, ValueError, KeyError):
        return
    refuse_architecture(about, policy.name, kind)


def load_policy(
    policy: ModelRef, config: Any, device: str, precision: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the model to train (weights in fp32,
    or frozen and quantised under an adapter) and its tokenizer.
    """
    if config.kind != "sft":
        refuse_encoder_decoders(policy, config.kind)
    model, tokenizer = load_model(policy, **loading_kwargs(config, device, precision))
    if isinstance(model, LabDualHeadForCausalLM):
        raise LabError(
            f"is a dual-head model, whose backbone stays frozen: `{config.kind}` trains whole models",
            where=policy.name,
            remedy=f"train its backbone, {model.config.backbone}",
        )
    return (
        add_adapter(model, config, task="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"),
        tokenizer,
    )

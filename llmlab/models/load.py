"""Loading what is trained: tokenizer and model of a checkpoint, adapters, quantisation, device, precision."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
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
from llmlab.models.identity import check_base, weights_fingerprint
from llmlab.models.limits import bounded_generation, check_adapter, check_files, refuse_pickles
from llmlab.models.resolve import refuse_architecture
from llmlab.runs.folder import find_model
from llmlab.trust import TRUSTED

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


def load_model(name: str, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns model and tokenizer of a run, a folder, a GGUF file or a hub id; adapters are attached, not
    merged.

    Args:
        name: as a person gives it.
        **kwargs: for `from_pretrained` (dtype, attn_implementation, quantization_config ...).

    Raises:
        LabError: when there is no such model, or it cannot be read.
    """
    where = find_model(name)
    path = Path(where)
    if path.exists():  # what is saved later names its base: the same file from any folder
        where = str(path := path.resolve())
    check_files(path)
    refuse_what_cannot_write(where)
    refuse_pickles(path)
    tokenizer = load_tokenizer(where)
    safe = safely(name)
    try:
        if path.suffix == ".gguf":
            if "quantization_config" in kwargs:  # the library quantises folders only
                model = equal_4bit_products(
                    AutoModelForCausalLM.from_pretrained(unpacked(path), **safe, **kwargs)
                )
                model.name_or_path = model.config.name_or_path = where
                stop_at_turn_ends(model, tokenizer)
                return model, tokenizer
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, **kwargs)
            model.name_or_path = model.config.name_or_path = where
            # the weights are plain floats now; the library's marks of quantisation would forbid training and
            # saving
            model.is_quantized, model.hf_quantizer = False, None
            model.config.__dict__.pop("quantization_config", None)
        elif (path / "adapter_config.json").is_file():
            from peft import PeftConfig, PeftModel

            base_name = PeftConfig.from_pretrained(where).base_model_name_or_path
            check_base(path, base_name)
            base = whole(load_model(base_name, **kwargs)[0], base_name)
            check_adapter(path, [name for name, _ in base.named_modules()])
            model = PeftModel.from_pretrained(base, where, is_trainable=True)
        elif (
            about := AutoConfig.from_pretrained(where, trust_remote_code=safe["trust_remote_code"])
        ).model_type == DUAL_HEAD:
            check_base(path, about.backbone, made="heads")
            backbone = plain(load_model(about.backbone, **kwargs)[0])
            model = LabDualHeadForCausalLM.from_pretrained(where, config=about, backbone=backbone)
        else:
            two_parts = about.is_encoder_decoder
            classes = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if two_parts else MODEL_FOR_CAUSAL_LM_MAPPING
            refuse_kernel(about, classes, kwargs.get("attn_implementation"), name)
            model = (AutoModelForSeq2SeqLM if two_parts else AutoModelForCausalLM).from_pretrained(
                where, **safe, **kwargs
            )
            if "quantization_config" in kwargs:
                model = equal_4bit_products(model)
    except ImportError as error:
        raise LabError(
            str(error).strip().splitlines()[0], where=name, remedy="`llmlab doctor` says what is missing"
        ) from None
    except LabError:
        raise
    except Exception as error:  # the libraries raise many kinds for one situation: these files are no model
        refuse_code(error, name)
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        place = (
            "holds no model that loads"
            if path.exists()
            else "is not on this machine and the hub did not give it"
        )
        raise LabError(
            f"{place} ({text})", where=name, remedy="" if path.exists() else "use a local run or folder"
        ) from None
    stop_at_turn_ends(model, tokenizer)
    return model, tokenizer


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


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model inside an adapter's wrapper, the adapter at work in its layers."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


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


def refuse_encoder_decoders(config: Any) -> None:
    """Refuses policies in two parts for methods that train decoders.

    Raises:
        LabError: with what to do.
    """
    where = Path(find_model(config.policy_checkpoint))
    try:
        if (where / "adapter_config.json").is_file():
            where = Path(str(read_object(where / "adapter_config.json")["base_model_name_or_path"]))
        about = read_object(where / "config.json")
    except (OSError, ValueError, KeyError):
        return
    refuse_architecture(about, config.policy_checkpoint, config.kind)


def load_policy(config: Any, device: str, precision: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the model to train (weights in fp32,
    or frozen and quantised under an adapter) and its tokenizer.
    """
    if config.kind != "sft":
        refuse_encoder_decoders(config)
    model, tokenizer = load_model(config.policy_checkpoint, **loading_kwargs(config, device, precision))
    if isinstance(model, LabDualHeadForCausalLM):
        raise LabError(
            f"is a dual-head model, whose backbone stays frozen: `{config.kind}` trains whole models",
            where=config.policy_checkpoint,
            remedy=f"train its backbone, {model.config.backbone}",
        )
    return (
        add_adapter(model, config, task="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"),
        tokenizer,
    )

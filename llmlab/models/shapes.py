"""The shape of a model by its `config.json` alone: parameters are counted by the rules of its architecture.

An architecture is a row of a table: which matrices have biases, how many norms a layer has, what stands
beside the layers. `tests/models/test_known_models.py` builds each known model by transformers and counts
again. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.errors import LabError

ALIASES = {
    "width": ("hidden_size", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "feed_forward": ("intermediate_size", "d_ff", "n_inner", "ffn_dim"),
    "vocabulary": ("vocab_size",),
    "longest": ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx"),
}
ACTIVATION = ("hidden_act", "activation_function", "hidden_activation", "activation")
DROPOUT = ("resid_pdrop", "residual_dropout", "hidden_dropout", "dropout")
ATTENTION_DROPOUT = ("attn_pdrop", "attention_dropout")
Values = Mapping[str, Any]
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")


@dataclass(frozen=True)
class CheckpointShape:
    """What a plan needs to know of a model.

    Attributes:
        kind: its architecture's name.
        width: of the hidden states.
        layers: blocks.
        heads: of attention.
        kv_heads: of keys and values.
        head_dim: width of a head.
        feed_forward: width of the feed-forward layers.
        gated: whether these have a gate.
        vocabulary: rows of the embedding.
        tied: whether the head is the embedding.
        longest: positions it was made for; None where it does not say.
        parameters: all of them, tied ones once.
        in_matrices: those of the blocks' matrices.
        activation: the nonlinearity of its feed-forward layers, in transformers' words; "" where it is not
            known.
        dropout: whether it drops parts of its hidden states in training.
        attention_dropout: whether it drops weights of attention in training.
    """

    kind: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    gated: bool
    vocabulary: int
    tied: bool
    longest: int | None
    parameters: int
    in_matrices: int
    activation: str = ""
    dropout: bool = False
    attention_dropout: bool = False


EXPERTS_IN_WORDS = "is a mixture of experts ({}), whose memory and speed are not predicted"


@dataclass(frozen=True)
class Architecture:
    """How the parameters of a model follow from its config.

    Attributes:
        gated: whether the feed-forward part has a third matrix, its gate.
        tied: whether the output head is the embedding, where the config does not say.
        norm: values of a norm for each of its inputs: 1 (a scale), 2 (with a bias), 0 (none are learned).
        norms: in a layer, over the hidden states.
        query_norms: "" for none; "head" for one of a head's width each on queries and keys; "whole" for ones
            over all heads.
        qkv_bias: of queries, keys and values: True, False, or the option that says it.
        output_bias: of the matrix behind the heads, likewise.
        forward_bias: of the feed-forward matrices, likewise.
        head_bias: whether the output head has a bias.
        final_norm: whether a norm comes before the head.
        positions: learned positions beside those that the config counts; None where none are learned.
        embedding_norm: whether a norm comes behind the embedding.
        activation: of the feed-forward layers, where the config does not say.
        dropout: share of the hidden states that is dropped in training, where the config does not say.
        attention_dropout: of the weights of attention, likewise.
        keeps_attention: whether its attention is made without a fused kernel, so that its weights are kept.
    """

    gated: bool = True
    tied: bool = False
    norm: int = 1
    norms: int = 2
    query_norms: str = ""
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    forward_bias: bool | str = False
    head_bias: bool = False
    final_norm: bool = True
    positions: int | None = None
    embedding_norm: bool = False
    activation: str = ""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    keeps_attention: bool = False


_LLAMA = Architecture(qkv_bias="attention_bias", output_bias="attention_bias", forward_bias="mlp_bias")
_GPT = Architecture(gated=False, norm=2, qkv_bias=True, output_bias=True, forward_bias=True)
_GEMMA = Architecture(tied=True, qkv_bias="attention_bias", output_bias="attention_bias")
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": Architecture(),
    "qwen2": Architecture(qkv_bias=True),
    "qwen3": Architecture(query_norms="head", qkv_bias="attention_bias", output_bias="attention_bias"),
    "gemma": _GEMMA,
    "gemma2": Architecture(tied=True, norms=4, qkv_bias="attention_bias", output_bias="attention_bias"),
    "gemma3_text": Architecture(
        tied=True, norms=4, query_norms="head", qkv_bias="attention_bias", output_bias="attention_bias"
    ),
    "phi": Architecture(
        gated=False,
        norm=2,
        norms=1,
        qkv_bias=True,
        output_bias=True,
        forward_bias=True,
        head_bias=True,
        activation="gelu_new",
    ),
    "phi3": Architecture(),
    "smollm3": Architecture(tied=True, qkv_bias="attention_bias", output_bias="attention_bias"),
    "olmo": Architecture(norm=0, qkv_bias="attention_bias", output_bias="attention_bias"),
    "olmo2": Architecture(query_norms="whole", qkv_bias="attention_bias", output_bias="attention_bias"),
    "olmo3": Architecture(query_norms="whole", qkv_bias="attention_bias", output_bias="attention_bias"),
    "gpt2": Architecture(
        gated=False,
        tied=True,
        norm=2,
        qkv_bias=True,
        output_bias=True,
        forward_bias=True,
        positions=0,
        activation="gelu_new",
        dropout=0.1,
        attention_dropout=0.1,
    ),
    "gpt_neox": _GPT,
    "opt": Architecture(
        gated=False,
        tied=True,
        norm=2,
        qkv_bias=True,
        output_bias=True,
        forward_bias=True,
        positions=2,
        activation="relu",
        dropout=0.1,
    ),
    "bloom": Architecture(
        gated=False,
        tied=True,
        norm=2,
        qkv_bias=True,
        output_bias=True,
        forward_bias=True,
        embedding_norm=True,
        keeps_attention=True,
    ),
    "falcon": Architecture(
        gated=False, tied=True, norm=2, norms=1, qkv_bias="bias", output_bias="bias", forward_bias="bias"
    ),
    "stablelm": Architecture(norm=2, qkv_bias="use_qkv_bias"),
    "granite": Architecture(qkv_bias="attention_bias", output_bias="attention_bias", forward_bias="mlp_bias"),
    "internlm2": Architecture(qkv_bias="bias", output_bias="bias"),
    "starcoder2": Architecture(
        gated=False, tied=True, norm=2, qkv_bias="use_bias", output_bias="use_bias", forward_bias="use_bias"
    ),
    "minicpm": Architecture(tied=True),
}
# of a family of these, what is not counted here
UNCOUNTED: dict[str, tuple[str, object]] = {
    "stablelm": ("qk_layernorm", True),
    "phi": ("qk_layernorm", True),
    "opt": ("do_layer_norm_before", False),
    "falcon": ("alibi", True),
}


def shape_of_config(model_config: Values, where: str) -> CheckpointShape:
    """Returns the shape of a model by what its `config.json` says.

    Args:
        model_config: as the file has it.
        where: the model's name, for errors.

    Raises:
        LabError: when the architecture is not one that is counted here, or has experts, or the config does
            not say enough.
    """
    values = {**model_config, **(model_config.get("text_config") or {})}
    kind = str(values.get("model_type"))
    if any(isinstance(values.get(name), int) and values[name] > 1 for name in EXPERTS) or "moe" in kind:
        raise LabError(EXPERTS_IN_WORDS.format(kind), where=where, remedy="name a dense model")
    architecture = ARCHITECTURES.get(kind)
    if architecture is None:
        raise LabError(
            f"has an architecture whose parameters are not counted without its weights: {kind}",
            where=where,
            remedy=f"download the model, or name one of {', '.join(sorted(ARCHITECTURES))}",
        )
    option, uncounted = UNCOUNTED.get(kind, ("", None))
    if option and values.get(option) == uncounted:
        raise LabError(
            f"has `{option}` {uncounted}, whose parameters are not counted without its weights",
            where=where,
            remedy="download the model",
        )
    return _counted(architecture, kind, values, where)


def _counted(architecture: Architecture, kind: str, values: Values, where: str) -> CheckpointShape:
    width, layers, heads, rows = (
        _number(values, key, where) for key in ("width", "layers", "heads", "vocabulary")
    )
    kv_heads = _kv_heads(kind, values, heads)
    head_dim = values.get("head_dim") or width // heads
    forward = _first(values, "feed_forward") or 4 * width
    query, kv = heads * head_dim, kv_heads * head_dim
    in_matrices = layers * (width * (2 * query + 2 * kv) + (3 if architecture.gated else 2) * width * forward)
    tied = bool(values.get("tie_word_embeddings", architecture.tied))
    longest = _first(values, "longest")
    beside = rows * width * (1 if tied else 2)  # embedding and head
    beside += rows if architecture.head_bias else 0
    beside += architecture.norm * width * (architecture.final_norm + architecture.embedding_norm)
    if architecture.positions is not None:
        beside += ((longest or 0) + architecture.positions) * width
    total = in_matrices + layers * _vectors(architecture, values, width, query, kv, forward) + beside
    return CheckpointShape(
        kind=kind,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=forward,
        gated=architecture.gated,
        vocabulary=rows,
        tied=tied,
        longest=longest,
        parameters=total,
        in_matrices=in_matrices,
        **kept_in_training(kind, values),
    )


def kept_in_training(kind: str, values: Values) -> dict[str, Any]:
    """Returns what a model's `config.json` says of its nonlinearity and dropout, as attributes of a shape."""
    architecture = ARCHITECTURES.get(kind, Architecture())

    def said(names: tuple[str, ...], otherwise: Any) -> Any:
        return next((values[name] for name in names if values.get(name) is not None), otherwise)

    return {
        "activation": str(said(ACTIVATION, architecture.activation)),
        "dropout": bool(said(DROPOUT, architecture.dropout)),
        "attention_dropout": bool(said(ATTENTION_DROPOUT, architecture.attention_dropout)),
    }


def _vectors(
    architecture: Architecture, values: Values, width: int, query: int, kv: int, forward: int
) -> int:
    """Returns the norms and biases of a layer."""

    def has(bias: bool | str) -> bool:
        return bool(values.get(bias)) if isinstance(bias, str) else bias

    norms = architecture.norms
    if values.get("new_decoder_architecture"):  # of the larger Falcons
        norms = 2
    count = norms * architecture.norm * width
    if architecture.query_norms:
        heads = query + kv if architecture.query_norms == "whole" else 2 * (query // _heads(values))
        count += architecture.norm * heads
    count += (query + 2 * kv) * has(architecture.qkv_bias) + width * has(architecture.output_bias)
    inputs = 2 if architecture.gated else 1
    return count + (inputs * forward + width) * has(architecture.forward_bias)


def _heads(values: Values) -> int:
    return int(_first(values, "heads") or 1)


def _kv_heads(kind: str, values: Values, heads: int) -> int:
    if kind == "falcon":
        if values.get("new_decoder_architecture"):
            return int(values.get("num_kv_heads") or heads)
        return 1 if values.get("multi_query", True) else heads
    return _first(values, "kv_heads") or heads


def _number(values: Values, key: str, where: str) -> int:
    if (number := _first(values, key)) is None:
        raise LabError(f"its config.json has no `{ALIASES[key][0]}`", where=where)
    return number


def _first(values: Values, key: str) -> int | None:
    """Returns the first value of a quantity that has several names; None where there is none."""
    numbers = (values.get(name) for name in ALIASES[key])
    return next((number for number in numbers if type(number) is int and number > 0), None)

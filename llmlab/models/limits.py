"""What the files of a model may ask for: they come from others, and each is looked at before a library acts
on it.

transformers and peft do what a config says: search with a million beams, match a regular expression that
    never ends, make an adapter of rank 10^9, read weights from a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llmlab.data.templates import TooLong, at_most
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.headers import tensor_sizes
from llmlab.models.shapes import ALIASES
from llmlab.readable import shortened
from llmlab.runs.manifest import PICKLES

JSON_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "model.safetensors.index.json",
)
LARGEST_JSON = 50_000_000  # bytes
MOST_LAYERS, MOST_PATTERNS, LONGEST_PATTERN = 10_000, 10_000, 10_000
PATTERN_SECONDS = 0.5  # of the processor, for all patterns of an adapter over all modules of its base
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
SIZES = tuple(
    name for names in ALIASES.values() for name in names
)  # of width, heads, vocabulary, positions ...
LARGEST_SIZE = 1 << 32
CONVERT = (
    "convert it to safetensors where you trust it (`model.save_pretrained(folder)`), or take another copy"
)


def _ids(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) <= 1000 and all(isinstance(item, int) and 0 <= item < 1 << 31 for item in values)


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and low <= value <= high


# what is kept of a model's generation config, and what it can be; what else is in it changes how a search is
# done, not what for
GENERATION: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            "eos_token_id",
            "bos_token_id",
            "pad_token_id",
            "decoder_start_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "suppress_tokens",
            "begin_suppress_tokens",
        ),
        _ids,
    ),
    **dict.fromkeys(("do_sample", "early_stopping", "use_cache"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("temperature", "repetition_penalty", "length_penalty"), _between(-100, 100)),
    **dict.fromkeys(("top_p", "min_p", "typical_p"), _between(0, 1)),
    **dict.fromkeys(("max_length", "max_new_tokens"), _between(1, 1 << 24)),
    "top_k": _between(0, 1 << 24),
    "no_repeat_ngram_size": _between(0, 100),
    "num_beams": _between(1, 32),
}


def bounded_generation(config: Any) -> Any:
    """Returns a model's generation config with what the lab knows of it, each within bounds."""
    own = config.to_diff_dict()
    bounded = {
        name: own[name] for name, fits in GENERATION.items() if own.get(name) is not None and fits(own[name])
    }
    return type(config)(**bounded)


def refuse_pickles(path: Path) -> None:
    """Refuses weights in files that can run code when they are read: none is ever opened.

    Raises:
        LabError: for a pickle, and for a folder whose weights would be read from one.
    """
    if path.suffix in PICKLES:
        raise LabError(
            "is a pickle, which can run code when it is read: it was not opened",
            where=str(path),
            remedy=CONVERT,
        )
    if not path.is_dir():
        return
    adapter = (path / "adapter_config.json").is_file()
    # transformers is told to read safetensors alone; peft takes what it finds
    wanted = ("adapter_model.safetensors",) if adapter else ("*.safetensors", "*.gguf")
    if any(file.is_file() for pattern in wanted for file in path.glob(pattern)):
        return
    if pickles := [
        file.name
        for file in sorted(path.iterdir())
        if file.suffix in PICKLES and file.name != "training_args.bin"
    ]:
        raise LabError(
            f"has its weights in a pickle ({pickles[0]}), which can run code when it is read: it was not"
            " opened",
            where=str(path),
            remedy=CONVERT,
        )
    if adapter:
        raise LabError(
            "is an adapter without weights (adapter_model.safetensors)",
            where=str(path),
            remedy="copy it again",
        )


def check_files(path: Path) -> None:
    """Looks at the JSON files of a model's folder, which libraries read without bounds.

    Raises:
        LabError: when one is no JSON object, is nested too deeply, or names more than a model can have.
    """
    if not path.is_dir():
        return
    for name in JSON_FILES:
        try:
            content = read_object(path / name, largest=LARGEST_JSON)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LabError(f"{name} {reason}", where=str(path), remedy="copy it again") from None
        if name == "config.json":
            _check_shape(content, path)


def _check_shape(model_config: dict[str, Any], path: Path) -> None:
    text = model_config.get("text_config")
    for part in (model_config, text if isinstance(text, dict) else {}):
        for name in LAYERS:
            if isinstance(value := part.get(name), (int, float)) and not 0 <= value <= MOST_LAYERS:
                raise LabError(
                    f"config.json: `{name}` is {shortened(str(value), 40)}",
                    where=str(path),
                    remedy="copy it again",
                )
        for name in SIZES:
            value = part.get(name)
            if isinstance(value, (str, bool, dict)) or (
                isinstance(value, (int, float)) and not 0 <= value <= LARGEST_SIZE
            ):
                shown = shortened(repr(value), 40)
                raise LabError(
                    f"config.json: `{name}` is {shown}, not a size", where=str(path), remedy="copy it again"
                )


def check_adapter(path: Path, modules: Iterable[str]) -> None:
    """Looks at what an adapter's config asks of its base before peft does it.

    Args:
        path: folder of the adapter.
        modules: names of the base's modules, which its patterns are matched with.

    Raises:
        LabError: when a pattern is none or takes too long, or a rank is larger than any weight of the
            adapter.
    """
    adapter = read_object(path / "adapter_config.json")
    max_width = max((max(shape, default=0) for shape in tensor_sizes(path).values()), default=0)
    for name, ranks in (("r", [adapter.get("r")]), ("rank_pattern", _values(adapter.get("rank_pattern")))):
        for rank in ranks:
            if isinstance(rank, int) and rank > max(max_width, 1):
                raise LabError(
                    f"`{name}` {rank:,} is more than its weights have",
                    where=str(path),
                    remedy="copy it again",
                )
    patterns = [
        (name, pattern)
        for name in (
            "target_modules",
            "exclude_modules",
            "layers_pattern",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
            "target_parameters",
        )
        for pattern in _patterns(adapter.get(name))
    ]
    if len(patterns) > MOST_PATTERNS:
        raise LabError(
            f"adapter_config.json names {len(patterns):,} modules", where=str(path), remedy="copy it again"
        )
    names = list(modules)
    try:
        with at_most(PATTERN_SECONDS):
            for tried in patterns:
                _try_out(tried[1], names)
        return
    except TooLong:
        fault = "is a pattern that takes too long to match"
    except (re.error, RecursionError, OverflowError) as error:
        fault = f"is not a pattern ({error})"
    name, pattern = tried
    raise LabError(
        f"`{name}` {shortened(repr(pattern), 80)} {fault}",
        where=str(path),
        remedy="name the modules themselves in adapter_config.json",
    )


def _try_out(pattern: str, names: list[str]) -> None:
    """Matches a pattern with module names as peft does."""
    if len(pattern) > LONGEST_PATTERN:
        raise re.error("too long")
    forms = [
        re.compile(pattern),
        re.compile(rf"(.*\.)?({pattern})$"),
        re.compile(rf"(^|.*\.){pattern}($|\..*)"),
    ]
    for name in names:
        forms[0].fullmatch(name)
        forms[1].match(name)
        forms[2].match(name)


def _patterns(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, dict)) else []


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []

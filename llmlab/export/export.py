"""The story of an export: load, write beside the target, test with the target's own reader, rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from llmlab.config.export import FLOATS, ExportOptions
from llmlab.errors import LabError
from llmlab.export.folder import Layout, layout, write_folder
from llmlab.export.gguf_file import (
    Conversion,
    convert,
    float_type,
    pre_tokenizer,
    quantize,
    refuse_without_programs,
    with_own_head,
)
from llmlab.export.modelfile import modelfile
from llmlab.export.selftest import Outcome, Prompt, Written, expected, read_by_llama_cpp, read_by_transformers
from llmlab.export.source import Source, load_source
from llmlab.files import write_text_atomically
from llmlab.runs.folder import find_model

RECORD = "export.json"  # beside the model: what was exported, and what the self-test measured
GGUF_PROGRAMS = ("llama.cpp", "LM Studio", "Jan", "koboldcpp")
# the largest difference of logits that rounding explains, by the type of the weights; llama.cpp rounds the
# hidden states to the type of the weights, too
ROUNDING = {"F32": 5e-3, "F16": 0.1, "BF16": 0.5, "float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
MOST_DIVERGENCE = 1.0  # nats a token: a quantised model that is further from the original is broken


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        target: the folder.
        description: what it is, in words.
        programs: that read it.
        outcome: of the self-test.
        notes: what else is to be said.
    """

    target: Path
    description: str
    programs: tuple[str, ...]
    outcome: Outcome
    notes: tuple[str, ...]


def export(name: str, options: ExportOptions, say: Callable[[str], None] = lambda _: None) -> Exported:
    """Writes a model in the form of other programs, whole or not at all, after they have read it.

    Args:
        name: a run, a model folder, a GGUF file or a hub id.
        options: of the export.
        say: is told what goes on.

    Raises:
        LabError: when it cannot be exported so, or what was written does not give the same answers.
    """
    where = Path(find_model(name))
    target = target_folder(where, options)
    if options.to != "hf":
        refuse_without_programs(options.quantize)
    say(f"loading {name}")
    source = load_source(name, options)
    plan = layout(source)
    if options.to != "hf" and (plan.own_code or source.use == "score"):
        what = "a reward model" if source.use == "score" else plan.description
        raise LabError(
            f"llama.cpp reads native language models only; this is {what}",
            where=name,
            remedy="export it with --to hf",
        )
    _refuse_full_disk(plan, target, options)
    say("asking it the prompts of the self-test")
    prompts = expected(source)
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        exported = (_hf if options.to == "hf" else _gguf)(plan, aside, prompts, options, say)
        _write_record(aside, name, options, exported)
        aside.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LabError(f"cannot be written ({reason})", where=str(target), remedy="free space") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(
        target, exported.description, exported.programs, exported.outcome, source.notes + exported.notes
    )


def target_folder(where: Path, options: ExportOptions) -> Path:
    """Returns the folder that an export makes.

    Raises:
        LabError: when it is there already.
    """
    if options.output:
        target = Path(options.output)
    elif where.exists():
        stem = where.stem if where.is_file() else where.name
        target = where.parent / (options.to if stem in ("best", "final") else f"{stem}-{options.to}")
    else:
        target = Path(f"{where.name}-{options.to}")
    if target.exists() or target.is_symlink():
        raise LabError("already exists", where=str(target), remedy="name another folder with -o")
    return target


def _refuse_full_disk(plan: Layout, target: Path, options: ExportOptions) -> None:
    model = plan.source.model
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    needed = weights if options.to == "hf" else 2 * weights  # the folder that is converted, and the file
    place = target.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise LabError(
            f"the disk has {free / 1e9:.2f} GB free and this export writes about {needed / 1e9:.2f} GB",
            where=str(target),
            remedy="free space, or name another place with -o",
        )


def _hf(
    plan: Layout, aside: Path, prompts: list[Prompt], options: ExportOptions, say: Callable[[str], None]
) -> Exported:
    say(f"writing {plan.description}")
    write_folder(plan, aside)
    say("reading it by transformers, in a process without llmlab")
    (outcome,) = read_by_transformers(Written(aside, plan.source, prompts, plan.own_code))
    _refuse_difference(outcome, str(plan.source.model.dtype).removeprefix("torch."), "transformers")
    return Exported(aside, plan.description, plan.programs, outcome, ())


def _gguf(
    plan: Layout, aside: Path, prompts: list[Prompt], options: ExportOptions, say: Callable[[str], None]
) -> Exported:
    source = plan.source
    kind = float_type(options.quantize, source.model.dtype)
    say(f"writing {plan.description}")
    native = aside / "native"
    with_own_head(source.model)
    write_folder(plan, native)
    title = Path(find_model(source.name)).name if options.output is None else Path(options.output).name
    say(f"converting it to GGUF ({kind})")
    floats = aside / f"model-{kind}.gguf"
    splits = pre_tokenizer(source.tokenizer)
    (notes,) = convert(Conversion(native, floats, kind, title, splits))
    shutil.rmtree(native)
    say("reading it by llama.cpp")
    (outcome,) = read_by_llama_cpp(Written(floats, source, prompts))
    _refuse_difference(outcome, kind, "llama.cpp")
    file = floats
    if options.quantize not in ("auto", *FLOATS):
        file = aside / f"model-{options.quantize}.gguf"
        say(f"rounding its weights to {options.quantize}, and reading it again")
        quantize(floats, file, options.quantize)
        exact, (outcome,) = outcome, read_by_llama_cpp(Written(file, source, prompts))
        if outcome.divergence > MOST_DIVERGENCE:
            raise LabError(
                f"the self-test failed: {options.quantize} changes what the model says"
                f" ({outcome.divergence:.2f} nats a token); nothing was written",
                where=source.name,
                remedy="use more bits (Q8_0 or F16)",
                exit_code=1,
            )
        notes.append(f"before rounding, as {kind}, the largest difference was {exact.difference:.1g}")
        floats.unlink()
    if options.to == "ollama":
        text, more = modelfile(source.tokenizer, file.name, _context(source))
        write_text_atomically(aside / "Modelfile", text)
        notes += more
    programs = ("Ollama",) if options.to == "ollama" else GGUF_PROGRAMS
    return Exported(
        aside, f"a GGUF file ({file.name}) of {plan.description}", programs, outcome, tuple(notes)
    )


def _context(source: Source) -> int | None:
    from llmlab.models.transformer.context import context_length

    return context_length(source.model)


def _refuse_difference(outcome: Outcome, kind: str, reader: str) -> None:
    """Refuses an export whose logits differ by more than rounding explains, or whose answers end elsewhere.

    Raises:
        LabError: with the difference.
    """
    if outcome.same_answers < 1.0:
        raise LabError(
            f"the self-test failed: read by {reader}, only {outcome.same_answers:.0%} of the greedy answers"
            " are the same and stop at the same token; nothing was written",
            exit_code=1,
        )
    if outcome.difference > ROUNDING[kind]:
        raise LabError(
            f"the self-test failed: read by {reader}, its logits differ by up to {outcome.difference:.2g}"
            f" (weights in {kind}, up to {ROUNDING[kind]:g} is rounding); nothing was written",
            exit_code=1,
        )


def _write_record(folder: Path, name: str, options: ExportOptions, exported: Exported) -> None:
    facts = {
        "exported": name,
        "options": options.model_dump(exclude_defaults=True),
        "description": exported.description,
        "programs": exported.programs,
        "self_test": asdict(exported.outcome),
        "notes": exported.notes,
    }
    write_text_atomically(folder / RECORD, json.dumps(facts, indent=1) + "\n")

"""Which models there are and what each can be used for: runs of the lab, and models that are brought.
No torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from llmlab.config.base import KindConfig
from llmlab.config.loader import KINDS, apply_changes
from llmlab.config.training import NEWEST, TrainingConfig
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.headers import whole
from llmlab.models.hub import HubAnswer, look_up
from llmlab.runs.folder import RUNS, RunFolder, find_model
from llmlab.runs.index import RunRow, run_rows
from llmlab.runs.manifest import PICKLES

Config = TypeVar("Config", bound=KindConfig)
METHODS = {kind: cls for kind, cls in KINDS.items() if issubclass(cls, TrainingConfig)}


def kinds_that_make(*sorts: str) -> tuple[str, ...]:
    """Returns the kinds of runs whose result is a model of one of these sorts."""
    return tuple(kind for kind, cls in METHODS.items() if cls.MAKES in sorts)


# what a model is wanted for (a kind of training, a chat, a score, its tokenizer) -> kinds of runs whose
# result will do
FITS: dict[str, tuple[str, ...]] = {
    **{
        kind: kinds_that_make(*cls.STARTS_FROM_MODELS)
        for kind, cls in METHODS.items()
        if cls.STARTS_FROM_MODELS
    },
    "chat": kinds_that_make("base", "policy", "dual_head"),
    "evaluation": kinds_that_make("base", "policy", "dual_head"),
    "score": kinds_that_make("scorer"),
    "tokenizer": tuple(METHODS),
    "weights": tuple(METHODS),
}
IN_WORDS = {
    "pretrain": "a model that generates text",
    "sft": "a base model or a fine-tuned one",
    "chat": "a model that generates text",
    "evaluation": "a model that generates text",
    "score": "a reward model",
    "tokenizer": "a model or a tokenizer",
    "weights": "a model",
}
DUAL_HEAD = "llmlab_dual_head"
WRITES = ("chat", "evaluation")  # uses of any model that writes text
# read text in both directions and cannot write any
ENCODERS = {
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta",
    "deberta-v2",
    "albert",
    "xlm-roberta",
    "modernbert",
    "mpnet",
}


@dataclass(frozen=True)
class ModelRef:
    """What the name of a model stands for, looked up once.

    Attributes:
        name: as a person gave it.
        where: a folder, a GGUF file, or a hub id.
        kind: which of them; an adapter's folder is an "adapter".
    """

    name: str
    where: str
    kind: Literal["folder", "adapter", "gguf", "hub"]

    @property
    def path(self) -> Path:
        """The same as a path, absolute where it is on this machine: what is saved later names its base so."""
        return Path(self.where) if self.kind == "hub" else Path(self.where).resolve()


def resolve_model(name: str | ModelRef) -> ModelRef:
    """Returns what a name stands for; a reference is one already.

    Raises:
        LabError: when a local path holds no model.
    """
    if isinstance(name, ModelRef):
        return name
    where = find_model(name)
    path = Path(where)
    if not path.exists():
        return ModelRef(name, where, "hub")
    if path.suffix == ".gguf":
        return ModelRef(name, where, "gguf")
    return ModelRef(name, where, "adapter" if (path / "adapter_config.json").is_file() else "folder")


def wanted(use: str) -> str:
    """Returns in words which models a use takes: "a fine-tuned model"."""
    return IN_WORDS.get(use, "a fine-tuned model")


def runs_for(use: str) -> list[RunRow]:
    """Returns the runs whose result fits a use (a key of `FITS`), newest first."""
    return [
        row
        for row in run_rows(RUNS)
        if row.kind in FITS[use] and (result := RunFolder(row.path).result()) and not misfit(result, use)
    ]


def with_newest(config: Config, *, required: bool = True) -> Config:
    """Returns the config with the name of a run where it says "newest": that of the run it resumes, else the
    newest that fits.

    Raises:
        LabError: when there is none and it is `required`.
    """
    option = getattr(type(config), "STARTS_FROM", "")
    if not option or getattr(config, option) != NEWEST:
        return config
    folder: Path | None = None
    if isinstance(config, TrainingConfig):
        folder = Path(config.output_dir) if config.output_dir else RUNS / config.name if config.name else None
    before = RunFolder(folder).record.get("config") if folder else None
    if isinstance(before, dict) and isinstance(name := before.get(option), str):
        return apply_changes(config, {option: name})
    if runs := runs_for(config.kind):
        return apply_changes(config, {option: str(runs[0].path)})
    if not required:
        return config
    raise LabError(
        f"`{option}` is {NEWEST!r}, and no run here made {wanted(config.kind)}",
        remedy=f"name one: a run, a folder, a hub id or a GGUF file (--set {option}=NAME)",
    )


def check_model(name: str, use: str, *, ask: bool = True) -> Path | HubAnswer:
    """Returns where a model was found, after a look at all of it that is on this machine: its path, or what
    is known of the hub id.

    Args:
        name: as a person gives it.
        use: what it is wanted for, a key of `FITS`.
        ask: the hub, where the name can only be an id.

    Raises:
        LabError: when there is no such model, its files cannot be loaded, or it does not fit the use.
    """
    if name == NEWEST:
        raise LabError(
            f"no run here made {wanted(use)}",
            where=name,
            remedy="name a run, a folder, a hub id or a GGUF file",
        )
    where = Path(find_model(name, tokenizer=use == "tokenizer"))
    if where.exists():
        refuse_misfit(where, use)
        return where
    answer, folder = look_up(name, "model", ask=ask)
    if folder:
        refuse_misfit(folder, use)
    return answer


def misfit(where: Path, use: str) -> str:
    """Returns why a model on this machine cannot be used for something; "" where it can."""
    try:
        refuse_misfit(where, use)
    except LabError as error:
        return str(error)
    return ""


def refuse_misfit(where: Path, use: str) -> None:
    """Looks at the files of a model on this machine: the architecture that its config names, and whether
    weights are there.

    Raises:
        LabError: when it cannot be loaded, or cannot do what it is wanted for.
    """
    if use == "tokenizer":
        return  # loaded where it is needed; a folder without weights will do
    if where.is_file():
        _refuse_gguf(where, use)
        return
    adapter = _read(where / "adapter_config.json")
    if adapter is not None:
        scores = adapter.get("task_type") == "SEQ_CLS"
        _refuse_scorer(where, use, scores=scores)
        _refuse_without_weights(where)
        base = adapter.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise LabError(
                "is an adapter without the name of its base",
                where=str(where),
                remedy="set `base_model_name_or_path`",
            )
        _check_base(where, base, "weights" if scores else use)
        return
    model_config = _read(where / "config.json")
    if model_config is None:
        raise LabError("has no config.json", where=str(where))
    refuse_architecture(model_config, where, use)
    _refuse_without_weights(where)
    if model_config.get("model_type") == DUAL_HEAD:
        _check_base(where, str(model_config.get("backbone")), use)


def refuse_architecture(model_config: dict[str, Any], where: str | Path, use: str) -> None:
    """Refuses a model whose config says that it cannot do what it is wanted for ("weights": nothing is
    refused).

    Raises:
        LabError: with what it is, and what to take instead.
    """
    kind, classes = model_config.get("model_type"), model_config.get("architectures")
    classes = classes if isinstance(classes, list) else []
    if use == "weights":
        return
    _refuse_scorer(
        where, use, scores=any(str(name).endswith("ForSequenceClassification") for name in classes)
    )
    if use in ("score", "reward"):
        return  # any architecture can carry a scoring head
    if isinstance(kind, str) and kind in ENCODERS:
        raise LabError(
            f"is an encoder ({kind}): it cannot generate text",
            where=str(where),
            remedy=(
                "use a decoder (GPT, Llama, Qwen ...); classification works with those too, by the label's"
                " word"
            ),
        )
    if model_config.get("is_encoder_decoder") and use not in ("sft", *WRITES):
        raise LabError(
            f"is an encoder-decoder ({kind}): `{use}` trains decoders",
            where=str(where),
            remedy="fine-tune it with `sft`, or use a decoder (GPT, Llama, Qwen ...)",
        )
    if kind == DUAL_HEAD and use not in WRITES:
        raise LabError(
            f"is a dual-head model with a frozen backbone; `{use}` trains whole models",
            where=str(where),
            remedy=f"train its backbone, {model_config.get('backbone')}",
        )


def _refuse_scorer(where: str | Path, use: str, *, scores: bool) -> None:
    if scores and use not in ("score", "reward", "weights"):  # the training of a reward model can go on
        raise LabError(
            "is a reward model: it scores answers and cannot generate any",
            where=str(where),
            remedy="use the policy that it was trained for",
        )
    if use == "score" and not scores:
        raise LabError(
            "is not a reward model: it has no scoring head",
            where=str(where),
            remedy="`llmlab new reward` trains one from it",
        )


def _refuse_gguf(where: Path, use: str) -> None:
    try:
        with open(where, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(where)) from None
    if magic != b"GGUF":
        raise LabError("is not a GGUF file", where=str(where), remedy="copy it again")
    _refuse_scorer(where, use, scores=False)
    if importlib.util.find_spec("gguf") is None:
        raise LabError("a GGUF file needs the gguf package", where=str(where), remedy="pip install gguf")


def _refuse_without_weights(where: Path) -> None:
    files = sorted(where.glob("*.safetensors"))
    for index in where.glob("*.safetensors.index.json"):
        named = (_read(index) or {}).get("weight_map")
        missing = (
            sorted(set(named.values()) - {file.name for file in files}) if isinstance(named, dict) else []
        )
        if missing:
            raise LabError(
                f"lacks {missing[0]}, which {index.name} lists", where=str(where), remedy="copy it again"
            )
    for file in files:
        if not whole(file):
            raise LabError(
                f"{file.name} is truncated or damaged",
                where=str(where),
                remedy="copy it again, or recreate it",
            )
    if not files:
        pickles = [
            file.name
            for file in sorted(where.iterdir())
            if file.suffix in PICKLES and file.name != "training_args.bin"
        ]
        if pickles:
            raise LabError(
                f"has its weights in a pickle ({pickles[0]}), which can run code when it is read",
                where=str(where),
                remedy=(
                    "convert it to safetensors where you trust it (`model.save_pretrained(folder)`), or take"
                    " another copy"
                ),
            )
        raise LabError(
            "has no weights (*.safetensors)",
            where=str(where),
            remedy="copy them there, or name another model",
        )


def _check_base(where: Path, base: str, use: str) -> None:
    """Looks at the model that an adapter or a dual head was trained on."""
    try:
        base_path = Path(find_model(base))
    except LabError:
        raise LabError(
            f"was trained on {base}, which does not exist", where=str(where), remedy="restore that model"
        ) from None
    if base_path.exists():
        refuse_misfit(base_path, use)


def _read(file: Path) -> dict[str, Any] | None:
    """Returns a JSON object; None where the file is not there.

    Raises:
        LabError: when it is no JSON object.
    """
    try:
        return read_object(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise LabError(f"{file.name} is damaged", where=str(file.parent)) from None

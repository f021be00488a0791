"""The door: one short function a command. Everything heavy is imported where it is used,
so that help appears at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llmlab.errors import LabError
from llmlab.readable import listed, visible

app = typer.Typer(
    name="llmlab",
    help="From an empty machine to an aligned chat model. Without a command: the menu.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="What a dataset holds, and what is known.", no_args_is_help=True)
app.add_typer(data, name="data")
cache = typer.Typer(help="The reference log-probabilities that sequential DPO keeps.", no_args_is_help=True)
app.add_typer(cache, name="cache")
CacheDir = Annotated[Path, typer.Option("--cache-dir", help="Where the caches are.")]
CACHES = Path("checkpoints/reference_cache")
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an option of the config.")
]


@app.callback(invoke_without_command=True)
def menu(context: typer.Context) -> None:
    """From an empty machine to an aligned chat model. Without a command: the menu."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())  # at a terminal the program opens the menu without coming here
        raise typer.Exit(2)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="model, pretrain, sft, reward, dpo, grpo, ppo or dual_head.")],
    preset: Annotated[
        str | None, typer.Option(help="Start from a known shape; of methods from 100m, 1b or 7b.")
    ] = None,
    set_: SetOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where the config goes.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Take the defaults and ask nothing.")] = False,
) -> None:
    """Fill in the form for one config and save it."""
    from llmlab.config import apply_changes, save_config
    from llmlab.config.loader import kind_class
    from llmlab.config.presets import method_preset
    from llmlab.config.presets import preset as model_preset
    from llmlab.models.resolve import with_newest

    cls = kind_class(kind)
    start = (
        cls()
        if not preset
        else model_preset(preset)
        if kind == "model"
        else cls(**method_preset(kind, preset))
    )
    config = with_newest(apply_changes(start, parse_changes(set_)), required=False)
    if not yes:
        if not sys.stdin.isatty():
            raise LabError("there is no terminal to ask in", remedy="add --yes and --set KEY=VALUE")
        from llmlab.ui.forms import fill_in

        config = fill_in(config, origin=preset or "")
        if config is None:
            raise typer.Exit(130)
    name = preset if preset and kind == "model" else f"{kind}-{preset}" if preset else kind
    path = save_config(config, output or Path("model_configs") / f"{name}.json")
    typer.echo(visible(str(path)))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="model, pretrain, sft, reward, dpo, grpo, ppo or dual_head.")],
) -> None:
    """Print the JSON Schema of a config, for editors."""
    from llmlab.config import schema as json_schema

    typer.echo(json.dumps(json_schema(kind), indent=2))


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="A config file.")],
    set_: SetOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run three steps in a folder that is removed again.")
    ] = False,
) -> None:
    """Validate a config, show what it will cost and look at its data; starts nothing."""
    from llmlab.screen import LabConsole

    loaded = _with_newest(_load(config, set_))
    if measure and loaded.kind == "model":
        raise LabError(
            "is a model, of which no step can be measured", where=str(config), remedy="name a training config"
        )
    from llmlab.ui import preflight

    _quiet_datasets()
    console = LabConsole()
    preflight.show(loaded, console)
    if measure:
        for line in preflight.measure(loaded).lines(loaded):
            console.print(line, highlight=False, soft_wrap=True)


@app.command()
def methods() -> None:
    """What each training method learns from, what it costs, and when to choose it."""
    from llmlab.ui.methods import methods_table

    _print(methods_table())


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A config file, or the folder of a run to go on with.")],
    set_: SetOption = None,
    resume: Annotated[str, typer.Option(help="auto, never, or a checkpoint folder.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Agree to run code: a reward `module:function`, or a model's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one line of JSON.")] = False,
) -> None:
    """Train as a config says; progress on stderr, the result on stdout."""
    loaded = _with_newest(_load(config, set_))
    if loaded.kind == "model":
        raise LabError(
            "is a model, which cannot be run",
            where=str(config),
            remedy='name it as `model` in a "pretrain" config',
        )
    if dry_run:
        from llmlab.planning.report import plan_table
        from llmlab.ui.preflight import check_inputs

        _print(plan_table(loaded))
        for line in check_inputs(loaded):
            typer.echo(visible(line))
        return
    from llmlab.training.engine.environment import is_main, leave_processes, quiet_libraries
    from llmlab.training.engine.run import exit_code
    from llmlab.training.engine.run import run as train
    from llmlab.ui.preflight import check_inputs

    quiet_libraries()
    if trust:
        from llmlab.trust import TRUSTED

        TRUSTED.update(trust)
    for line in check_inputs(loaded):
        if is_main() and "cannot be reached" in line:  # the libraries will ask again and again, for a minute
            typer.echo(visible(f"{line}; trying all the same"), err=True)
    try:
        result = train(loaded, resume=resume)
        if is_main():
            typer.echo(result.to_json() if as_json else visible(result.summary()))
    finally:
        leave_processes()
    raise typer.Exit(exit_code(result))


@app.command()
def chat(
    checkpoint: Annotated[str, typer.Argument(help="A run, a model folder, a GGUF file or a hub id.")],
    against: Annotated[str | None, typer.Option(help="Another model, whose answers stand beside.")] = None,
    set_: SetOption = None,
) -> None:
    """Talk to a model; with piped input, one answer per line."""
    from llmlab.runs.folder import find_model
    from llmlab.screen import LabConsole

    if against:
        find_model(against)
    session = _session(checkpoint, set_)
    from llmlab.chat.session import chat as talk

    talk(session, LabConsole(), _beside(session, against) if against else None)


@app.command()
def generate(
    checkpoint: Annotated[str, typer.Argument(help="A run, a model folder, a GGUF file or a hub id.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to answer or continue.")],
    set_: SetOption = None,
) -> None:
    """One completion on stdout."""
    session = _session(checkpoint, set_)
    session.reply(prompt, lambda piece: print(visible(piece), end="", flush=True))
    print()


@app.command()
def merge(
    checkpoint: Annotated[str, typer.Argument(help="A run with an adapter, or its folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the merged model goes.")
    ] = None,
) -> None:
    """Add an adapter's weights to its base: a plain model folder that needs no adapter."""
    from llmlab.runs.folder import find_model

    find_model(checkpoint)
    from llmlab.models.merge import merge as merge_adapter
    from llmlab.training.engine.environment import quiet_libraries

    quiet_libraries()
    for line in merge_adapter(checkpoint, output):
        typer.echo(visible(line))


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A run, a model folder, a GGUF file or a hub id.")],
    task: Annotated[
        list[str], typer.Option("--task", metavar="SOURCE", help="What to measure it on; may be given again.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="How the sources are read: split, max_rows ..."),
    ] = None,
    by: Annotated[str, typer.Option(help="score or generate: how a label or an answer is found.")] = "score",
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="REWARD", help="Answer the prompts, too, and score the answers by this."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="With --reward: another model, for how often each wins.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Agree to run a reward `module:function`.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 16,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens of a text or conversation read at once; left out, 1,024 or the context."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens from one window of a text to the next; left out, half a window."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Measure a model: labels of a classification, loss of texts, preferences of pairs."""
    if by not in ("score", "generate"):
        raise LabError(f"`--by` {by!r} is not score or generate")
    if reward and by != "score":
        raise LabError("with `--reward` answers are always generated", remedy="leave out `--by`")
    sources = [_source(line, set_) for line in task]
    if reward and (max_length or stride):
        from llmlab.evaluation.sources import refuse_lengths

        refuse_lengths(max_length, stride, "prompts that are answered", task[0])
    if against and not reward:
        raise LabError(
            "`--against` compares answers by a reward",
            remedy="add --reward NAME (`llmlab new grpo` lists them)",
        )
    from llmlab.config.base import validate
    from llmlab.config.rewards import RewardSource
    from llmlab.runs.folder import find_model

    rewards = [validate(RewardSource, line) for line in reward or []]
    for name in [
        checkpoint,
        *([against] if against else []),
        *(one.name for one in rewards if one.kind == "model"),
    ]:
        find_model(name)
    if trust:
        from llmlab.trust import TRUSTED

        TRUSTED.update(trust)
    from llmlab.evaluation.sources import measure
    from llmlab.models.load import choose_device, load_model
    from llmlab.training.engine.environment import quiet_libraries
    from llmlab.ui.data import measured

    quiet_libraries()
    device = choose_device("auto")
    model, reader = load_model(checkpoint)
    model = model.to(device)
    if rewards:
        from llmlab.evaluation.wins import Speaker, judged
        from llmlab.models.load import is_backbone_of
        from llmlab.training.rewards import agree, weighted

        agree(rewards)
        speakers = [Speaker(checkpoint, model, reader)]
        if against and is_backbone_of(against, model):
            speakers.append(Speaker(against, model, reader, plain=True))
        elif against:
            other, its_reader = load_model(against)
            speakers.append(Speaker(against, other.to(device), its_reader))
        found = [
            judged(speakers, source, weighted(rewards, device), batch_size=batch_size) for source in sources
        ]
    else:
        how = {"by": by, "batch_size": batch_size, "max_length": max_length, "stride": stride}
        found = [measure(model, reader, source, **how) for source in sources]
    if as_json:
        typer.echo(json.dumps([figures.to_json() for figures in found]))
    else:
        _print(measured(found))


@data.command("inspect")
def inspect_source(
    source: Annotated[
        str, typer.Argument(help="A hub id, a file, a folder or what ships; also `name | subset`.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Whose tokens are counted: a model, a tokenizer folder, a hub id, `byte`."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="How it is read: split, format, columns, labels ..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Show what a dataset holds: shape, a row as the model sees it, lengths, padding, duplicates."""
    config = _source(source, set_)
    from llmlab.data.inspect import inspect
    from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
    from llmlab.models.resolve import runs_for
    from llmlab.runs.folder import find_model
    from llmlab.ui.data import inspection

    name = tokenizer or next((str(run.path) for run in runs_for("tokenizer")), "byte")
    reader = load_tokenizer(name if name == "byte" else find_model(name, tokenizer=True))
    ensure_chat_template(reader)
    _quiet_datasets()
    found = inspect(config, reader)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _print(inspection(found, "bytes (--tokenizer NAME counts tokens)" if name == "byte" else name))


@data.command("catalog")
def catalog(
    word: Annotated[str, typer.Argument(help="A dataset, or a word: finance, sft, classification ...")] = "",
) -> None:
    """Show the datasets that are known, or all that is known of one."""
    from llmlab.screen import LabConsole
    from llmlab.ui.data import show_catalogue

    show_catalogue(LabConsole(), word)


def _there(cache_dir: Path) -> Path:
    """Returns the folder of the caches; one that was named has to be there.

    Raises:
        LabError: when it is not.
    """
    if cache_dir != CACHES and not cache_dir.is_dir():
        raise LabError("there is no such folder", where=str(cache_dir), remedy=f"left out, it is {CACHES}")
    return cache_dir


@cache.command("list")
def list_caches(cache_dir: CacheDir = CACHES) -> None:
    """Every cache: its reference, pairs, size on disk, damaged parts."""
    from llmlab.ui.cache import caches_table

    _print(caches_table(_there(cache_dir)))


@cache.command("verify")
def verify_caches(
    config: Annotated[
        Path | None, typer.Argument(help="A DPO config: recompute some of its pairs with the reference.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs to recompute.")] = 32,
    cache_dir: CacheDir = CACHES,
) -> None:
    """Check every part; with a config, recompute a sample of its pairs and report the largest difference."""
    if config is None:
        from llmlab.ui.cache import verified

        lines, whole = verified(_there(cache_dir))
        typer.echo(visible("\n".join(lines)))
        raise typer.Exit(0 if whole else 2)
    loaded = _with_newest(_load(config, None))
    if loaded.kind != "dpo" or loaded.reference != "sequential":
        raise LabError('is no "dpo" config with a sequential reference', where=str(config))
    from llmlab.training.engine.environment import quiet_libraries
    from llmlab.training.reference.scorer import TOLERANCE, recompute

    quiet_libraries()
    checked, largest = recompute(loaded, pairs)
    typer.echo(
        f"{checked:,} pairs recomputed: the largest difference is {largest:.3g} (log-probability of an"
        " answer)"
    )
    if largest > TOLERANCE:
        raise LabError(
            "the cache disagrees with its reference", where=loaded.cache_dir, remedy="llmlab cache clear"
        )


@cache.command("clear")
def clear_caches(
    name: Annotated[
        str | None, typer.Argument(help="One cache, by the beginning of its name; left out, all.")
    ] = None,
    cache_dir: CacheDir = CACHES,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a cache, or all of them; what a run is using is skipped."""
    from llmlab.ui.cache import clear, matching

    chosen = matching(cache_dir, name)
    if not yes:
        if not sys.stdin.isatty():
            raise LabError("there is no terminal to ask in", remedy="add --yes")
        typer.confirm(visible(f"Delete {listed(cache.folder.name for cache in chosen)}?"), abort=True)
    lines, deleted = clear(chosen)
    typer.echo(visible("\n".join(lines)))
    raise typer.Exit(0 if deleted else 2)


@app.command()
def tokenizer(
    sources: Annotated[
        list[str], typer.Argument(help="Text to learn from: files, folders, hub ids, llmlab:moby-dick.")
    ],
    vocab_size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 8192,
    output: Annotated[Path, typer.Option("-o", "--output", help="The tokenizer's folder.")] = Path(
        "checkpoints/tokenizer"
    ),
) -> None:
    """Train a byte-level BPE tokenizer on your text."""
    from llmlab.config import SourceConfig
    from llmlab.config.base import validate
    from llmlab.data.prepare import document_texts
    from llmlab.data.tokenizer import save_tokenizer, train_tokenizer

    parsed = [validate(SourceConfig, source) for source in sources]
    made = train_tokenizer((text for source in parsed for text in document_texts(source)), vocab_size)
    save_tokenizer(made, output)
    typer.echo(visible(f"{output}: {len(made):,} tokens"))


@app.command()
def quickstart(
    minutes: Annotated[float, typer.Option(help="About how long it may take.")] = 5.0,
    model: Annotated[
        str | None, typer.Option(help="Fine-tune this model with LoRA in place of a new one.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for configs, data and runs.")] = Path(
        "checkpoints/quickstart"
    ),
    seed: Annotated[int, typer.Option(help="Of weights, order and training questions.")] = 42,
) -> None:
    """The whole pipeline on what ships: train, fine-tune, align, compare."""
    from llmlab.quickstart import quickstart as whole_pipeline
    from llmlab.screen import screen

    whole_pipeline(output, minutes=minutes, model=model, console=screen(), seed=seed)


@app.command()
def info(checkpoint: Annotated[str, typer.Argument(help="A run or a model folder.")]) -> None:
    """Architecture, parameters, method, steps, lineage and seal of a checkpoint."""
    from llmlab.ui.runs import info_table

    _print(info_table(checkpoint))


@app.command()
def runs(
    action: Annotated[str | None, typer.Argument(help="`verify` checks the seals of a run.")] = None,
    name: Annotated[str | None, typer.Argument(help="The run to verify.")] = None,
) -> None:
    """Every run with its status, parent and best figure."""
    from llmlab.ui.runs import runs_table, verify_run

    if action is None:
        _print(runs_table())
    elif action == "verify" and name:
        lines, whole = verify_run(name)
        typer.echo(visible("\n".join(lines)))
        raise typer.Exit(0 if whole else 2)
    elif action == "verify":
        raise LabError(
            "`runs verify` needs the name of a run", remedy="`llmlab runs` lists them: llmlab runs verify RUN"
        )
    else:
        raise LabError(f"unknown action {action!r}", remedy="llmlab runs, or llmlab runs verify RUN")


@app.command()
def doctor() -> None:
    """Python, packages, devices, memory, disk, hub: what is here and what is missing for what."""
    from llmlab.runs.doctor import doctor_table

    _print(doctor_table())


def command_line(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: of the program; left out, its own.

    Raises:
        LabError: when the command is not known, cannot be read so, or cannot do what is asked.
    """
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        place = error.ctx.command_path if getattr(error, "ctx", None) else "llmlab"
        raise LabError(
            error.format_message().rstrip("."), remedy=f"`{place} -h` says what can be given"
        ) from None
    except (
        OSError
    ) as error:  # a name too long, a link in a circle, a folder that cannot be entered: told by the system
        if not error.filename:
            raise
        raise LabError(f"cannot be used ({error.strerror})", where=str(error.filename)) from None


def parse_changes(pairs: list[str] | None) -> dict[str, Any]:
    """Returns `key=value` pairs as a dictionary; values are JSON where they parse as such (1e3 as the whole
    number), else text.

    Raises:
        LabError: when a pair has no `=`.
    """
    changes = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LabError(f"`--set {pair}` has no value", remedy="write --set key=value")
        try:
            parsed = json.loads(value)
            whole = isinstance(parsed, float) and "e" in value.lower() and parsed.is_integer()
            changes[key.strip()] = int(parsed) if whole else parsed
        except (ValueError, RecursionError):  # a text, and whatever else JSON is not
            changes[key.strip()] = value
    return changes


def _changes(cls: Any, set_: list[str] | None) -> dict[str, Any]:
    """Returns the changes of a block of options, numbers as people write them included."""
    from llmlab.config.base import as_number

    changes = parse_changes(set_)
    return {
        name: as_number(cls, name, value) if isinstance(value, str) else value
        for name, value in changes.items()
    }


def _load(path: Path, set_: list[str] | None) -> Any:
    from llmlab.config import apply_changes, load_config, parse_config
    from llmlab.runs.folder import RECORD, RunFolder

    if path.is_dir():
        record = RunFolder(path).record
        if damage := RunFolder(path).damage:
            raise LabError(
                f"the record of this run is damaged: {RECORD} {damage}",
                where=str(path),
                remedy="run its config file",
            )
        if "config" not in record:
            raise LabError("holds no run", where=str(path), remedy="name a config file or a run folder")
        config = parse_config(record["config"], where=str(path))
        if config.kind != "model":  # the folder that is named is the run, wherever it was when it began
            config = apply_changes(config, {"output_dir": str(path)})
    else:
        config = load_config(path)
    if config.migrated:
        typer.echo(visible(f"{path}: {config.migrated}"), err=True)
    return apply_changes(config, parse_changes(set_)) if set_ else config


def _with_newest(config: Any) -> Any:
    from llmlab.models.resolve import with_newest

    return with_newest(config)


def _source(line: str, set_: list[str] | None) -> Any:
    from llmlab.config import SourceConfig
    from llmlab.config.base import validate

    source = validate(SourceConfig, line)
    return (
        validate(SourceConfig, {**source.model_dump(exclude_unset=True), **_changes(SourceConfig, set_)})
        if set_
        else source
    )


def _quiet_datasets() -> None:
    import datasets

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _session(checkpoint: str, set_: list[str] | None) -> Any:
    from llmlab.config.base import validate
    from llmlab.config.chat import ChatSettings

    settings = validate(ChatSettings, _changes(ChatSettings, set_))
    from llmlab.runs.folder import find_model

    find_model(checkpoint)  # a wrong path is told before torch is loaded
    from llmlab.chat.session import ChatSession
    from llmlab.models.load import choose_device, load_model
    from llmlab.training.engine.environment import quiet_libraries

    quiet_libraries()
    model, tokenizer = load_model(checkpoint)
    return ChatSession(model.to(choose_device("auto")), tokenizer, settings, name=checkpoint)


def _beside(session: Any, name: str) -> Any:
    """Returns a session with another model; the backbone of a dual head is in memory already."""
    from llmlab.chat.session import ChatSession
    from llmlab.models.load import is_backbone_of, load_model

    if is_backbone_of(name, session.model):
        return ChatSession(session.model, session.tokenizer, session.settings, name=name, plain=True)
    model, tokenizer = load_model(name)
    return ChatSession(model.to(session.model.device), tokenizer, session.settings, name=name)


def _print(shown: Any) -> None:
    from llmlab.screen import LabConsole

    LabConsole().print(shown)

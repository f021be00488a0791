"""A model to the Hugging Face Hub: its files and a card, in one commit.

One commit, so that nobody ever downloads half of a push. Weights are uploaded before it and known by their
SHA-256: when a push breaks off they stay on the hub, which says so when it is asked again, and the next push
uploads what is missing. `create_commit` of huggingface_hub does both, over LFS (whole files) and over Xet
(parts of files).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmlab.errors import LabError
from llmlab.export.card import is_own_card, model_card
from llmlab.export.facts import BUNDLED, HUB_ID, ModelFacts, is_hub_id
from llmlab.models.hub import offline
from llmlab.models.resolve import refuse_misfit
from llmlab.readable import listed, shortened
from llmlab.runs.folder import read_json
from llmlab.runs.manifest import MANIFEST, verify
from llmlab.trust import redact

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

CARD = "README.md"
# of a model; whatever else lies beside them (optimizer states, records, manifests) stays here
FILES = re.compile(
    r"(adapter_)?config\.json|generation_config\.json|.*\.safetensors(\.index\.json)?|.*\.gguf|Modelfile"
    r"|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model"
    r"|chat_template\.(jinja|json)|(pre)?processor_config\.json|LICEN[CS]E(\.\w+)?|NOTICE(\.\w+)?"
)
WEIGHTS = re.compile(r"[^/]*\.(safetensors|gguf)|[^/]*\.safetensors\.index\.json|adapter_config\.json")
CONNECT, ANSWER = 15.0, 120.0  # seconds until the hub counts as out of reach, and as silent
AGAIN = "run the same command again: it uploads only what is missing"
Readme = Literal["card", "own", "kept"]


@dataclass(frozen=True)
class PushOptions:
    """What a person asks of a push.

    Attributes:
        repo_id: OWNER/NAME.
        private: whether the repository is made for its owner only.
        revision: the branch; "" for the main one.
        license_id: of the model, as the hub names it.
        as_is: whether a model that only this program loads is pushed all the same.
        replace_card: whether a README.md on the hub that somebody else wrote is replaced.
    """

    repo_id: str
    private: bool = False
    revision: str = ""
    license_id: str = ""
    as_is: bool = False
    replace_card: bool = False


@dataclass(frozen=True)
class Outgoing:
    """What a push uploads.

    Attributes:
        files: name on the hub -> file here.
        card: the text of the card; "" where the folder has a README.md that a person wrote.
        left_out: names of what stays here.
    """

    files: dict[str, Path]
    card: str
    left_out: list[str] = field(default_factory=list)

    @property
    def lacks_tokenizer(self) -> bool:
        """Whether there is none among the files; a GGUF file has its own, an adapter may use its base's."""
        names = set(self.files)
        return not any(
            name.startswith(("tokenizer", "vocab")) or name.endswith((".model", ".gguf")) for name in names
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values()) + len(self.card.encode())


@dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Attributes:
        url: of the model on the hub.
        readme: whose README.md it has there: the "card", the folder's "own", or the one that was "kept".
        removed: weights of an earlier push that were removed.
    """

    url: str
    readme: Readme
    removed: list[str]


def prepare_push(facts: ModelFacts, options: PushOptions) -> Outgoing:
    """Returns what would be uploaded; nothing is sent.

    Raises:
        LabError: when the model is not whole, or would be of no use where it goes.
    """
    if not HUB_ID.fullmatch(options.repo_id) or re.search(r"(^|/)[.-]|[.-](/|$)|--|\.\.", options.repo_id):
        raise LabError("is not the name of a repository", where=options.repo_id, remedy="write OWNER/NAME")
    _refuse_useless(facts, options)
    card = model_card(facts, repo_id=options.repo_id, license_id=options.license_id)
    if facts.where.is_file():
        beside = facts.where.with_name("Modelfile")
        more = {beside.name: beside} if beside.is_file() else {}
        return Outgoing({facts.where.name: facts.where, **more}, card)
    refuse_misfit(facts.where, "weights")
    files, left_out = {}, []
    for path in sorted(facts.where.iterdir()):
        if path.is_file() and (FILES.fullmatch(path.name) or _is_code(path, facts)):
            files[path.name] = path
        elif path.is_dir() and facts.form == "code" and path.name == BUNDLED:
            files |= {
                f"{BUNDLED}/{file.name}": file
                for file in sorted(path.iterdir())
                if file.is_file() and (FILES.fullmatch(file.name) or _is_code(file, facts))
            }
        elif path.name != CARD:
            left_out.append(path.name + ("/" if path.is_dir() else ""))
    if _is_written_by_a_person(facts.where):
        return Outgoing({**files, CARD: facts.where / CARD}, "", left_out)
    return Outgoing(files, card, left_out)


def _is_code(path: Path, facts: ModelFacts) -> bool:
    return facts.form == "code" and path.suffix == ".py"


def _refuse_useless(facts: ModelFacts, options: PushOptions) -> None:
    folder = facts.where if facts.where.is_dir() else facts.where.parent
    if facts.where.is_dir() and (folder / MANIFEST).is_file() and (fault := verify(folder)):
        raise LabError(f"is damaged: {fault}", where=str(folder), remedy="restore it, or name another model")
    if facts.form == "lab" and not options.as_is:
        raise LabError(
            "has an architecture that only llmlab loads: on the hub it would be of no use to others",
            where=facts.name,
            remedy=f"push what `llmlab export {facts.where} --to hf -o FOLDER` makes, or add --as-is",
        )
    if facts.base and not is_hub_id(facts.base):
        command = "merge" if facts.form == "adapter" else "export"
        raise LabError(
            f"needs {facts.base} to be loaded, which has no hub id",
            where=facts.name,
            remedy=f"make a whole model first (`llmlab {command} {facts.where} -o FOLDER`) and push that",
        )


def _is_written_by_a_person(folder: Path) -> bool:
    """Returns whether a folder's README.md is a person's: training writes one beside adapters, which the
    manifest knows; a card that this program wrote is made anew.
    """
    try:
        content = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    files = read_json(folder / MANIFEST).get("files")
    listed_file = files.get(CARD) if isinstance(files, dict) else None
    same = isinstance(listed_file, dict) and listed_file.get("bytes") == (folder / CARD).stat().st_size
    return not same and not is_own_card(content)


def push(outgoing: Outgoing, options: PushOptions, token: str, *, note: Callable[[str], None]) -> Pushed:
    """Uploads a model in one commit and returns where it is.

    Args:
        outgoing: what `prepare_push` returned.
        options: what was asked for.
        token: of the hub, which may write there.
        note: takes a line about what is being done.

    Raises:
        LabError: with exit code 2 for what the person has to change, 1 where the upload failed.
    """
    if offline():
        raise LabError("HF_HUB_OFFLINE forbids to ask the hub", remedy="unset it to push")
    from huggingface_hub import HfApi, set_client_factory

    set_client_factory(_client)
    api = HfApi(token=token)
    with _clear_messages(options, api.endpoint):
        _refuse_token(api)
        api.create_repo(options.repo_id, private=True if options.private else None, exist_ok=True)
        there = api.model_info(options.repo_id)
        if options.private and there.private is False:
            raise LabError(
                "is there already and is public",
                where=options.repo_id,
                remedy="make it private in its settings on the hub, or leave out --private",
            )
        if options.revision:
            api.create_branch(options.repo_id, branch=options.revision, exist_ok=True)
            there = api.model_info(options.repo_id, revision=options.revision)
        names = {one.rfilename for one in there.siblings or ()}
        readme = _whose_readme(api, outgoing, options, names)
        removed = sorted(name for name in names - set(outgoing.files) if WEIGHTS.fullmatch(name))
        if removed:
            note(f"removes {listed(removed)}: weights of an earlier push")
        api.create_commit(
            options.repo_id,
            _operations(outgoing, readme, removed),
            commit_message="Upload with llmlab",
            revision=options.revision or None,
        )
    branch = f"/tree/{options.revision}" if options.revision else ""
    return Pushed(f"{api.endpoint}/{options.repo_id}{branch}", readme, removed)


def _client() -> httpx2.Client:
    """Returns a client as huggingface_hub's, that does not wait for ever."""
    import httpx2

    return httpx2.Client(
        event_hooks={"request": [_refuse_offline]},
        follow_redirects=True,
        timeout=httpx2.Timeout(ANSWER, connect=CONNECT),
    )


def _refuse_offline(request: httpx2.Request) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if offline():
        raise OfflineModeIsEnabled(f"cannot reach {request.url}: HF_HUB_OFFLINE is set")


def _refuse_token(api: HfApi) -> None:
    account = api.whoami()
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise LabError(
            "the token of the hub can only read", remedy="make one that can write, and set HF_TOKEN to it"
        )


def _whose_readme(api: HfApi, outgoing: Outgoing, options: PushOptions, names: set[str]) -> Readme:
    if not outgoing.card:
        return "own"
    if CARD not in names or options.replace_card:
        return "card"
    file = api.hf_hub_download(options.repo_id, CARD, revision=options.revision or None)
    return "card" if is_own_card(Path(file).read_text(encoding="utf-8", errors="replace")) else "kept"


def _operations(
    outgoing: Outgoing, readme: Readme, removed: list[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, path) for name, path in outgoing.files.items()
    ]
    if readme == "card":
        operations.append(CommitOperationAdd(CARD, outgoing.card.encode()))
    return [*operations, *(CommitOperationDelete(name) for name in removed)]


@contextmanager
def _clear_messages(options: PushOptions, endpoint: str) -> Iterator[None]:
    """Turns what huggingface_hub and its transport raise into one message each."""
    try:
        yield
    except LabError:
        raise
    except OSError as error:
        if error.filename and not _status(error):
            raise LabError(f"cannot be read ({error.strerror})", where=str(error.filename)) from None
        raise _explained(error, options, endpoint) from None
    except Exception as error:  # of the client, its transport, and Xet, in many kinds
        raise _explained(error, options, endpoint) from None


def _status(error: BaseException) -> int:
    """Returns the status of the answer that an error, or what caused it, is about; 0 without an answer."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen = seen.__cause__
    return 0


def _explained(error: Exception, options: PushOptions, endpoint: str) -> LabError:
    repo_id, status, host = options.repo_id, _status(error), re.sub(r"^\w+://", "", endpoint)
    text = _text(error)
    messages = {
        400: (f"the hub refused the push ({text})", "", 2),
        401: ("the hub does not accept the token", "set HF_TOKEN to one that is valid", 2),
        402: (f"the hub asks for a payment ({text})", "", 2),
        403: (
            f"the token may not write to {repo_id}",
            "name a repository of your own, or of an organization that lets you write",
            2,
        ),
        404: (f"the hub has no {repo_id}", "look at the name and at --revision", 2),
        409: (f"{repo_id} was changed on the hub at the same time", AGAIN, 1),
        413: (f"the hub takes no file as large as this ({text})", "", 2),
        429: ("the hub takes no more requests from this account for now", f"wait, then {AGAIN}", 1),
    }
    if status in messages:
        what, remedy, code = messages[status]
        return LabError(what, where=host, remedy=remedy, exit_code=code)
    if status >= 500:
        return LabError(f"the hub failed (status {status})", where=host, remedy=AGAIN, exit_code=1)
    if isinstance(error, ValueError) and not status:  # metadata of the card, a name that it does not take
        return LabError(f"the hub does not take this ({text})", where=repo_id)
    cause = _deepest(error)
    name = type(cause).__name__
    if "Timeout" in name:
        return LabError("the hub did not answer in time", where=host, remedy=AGAIN, exit_code=1)
    if "Connect" in name:
        return LabError(
            f"the hub cannot be reached ({_text(cause)})",
            where=host,
            remedy="look at the network",
            exit_code=1,
        )
    return LabError(f"the upload broke off ({_text(cause)})", where=host, remedy=AGAIN, exit_code=1)


def _deepest(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _text(error: BaseException) -> str:
    """Returns the first line of an error that says something, without secrets and addresses."""
    server = getattr(error, "server_message", None)
    lines = [line.strip() for line in str(server or error).splitlines() if line.strip()]
    lines = lines if isinstance(error, ValueError) else lines[:1]  # those of a refused card are one a fault
    text = re.sub(r"https?://\S+", "...", " ".join(lines) or type(error).__name__)
    return shortened(redact(text), 200)


def progress_bars() -> None:
    """Lets huggingface_hub draw its bars; to be called before it is imported."""
    os.environ.pop("TQDM_DISABLE", None)

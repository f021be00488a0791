"""Judges: a served one says what it would say here, is asked nothing twice, and loses nothing in silence."""

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmlab.cli import command_line
from llmlab.config import SFTConfig
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.judges import ABSTENTION
from llmlab.data.verdicts import QUESTION, UNREADABLE, VERDICTS
from llmlab.errors import LabError
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.judges import SAID, ByReference, Claim, read_verdict
from llmlab.evaluation.run import evaluate
from llmlab.training.engine.run import run
from tests.conftest import write_rows
from tests.serving.conftest import serving

ROWS = [
    {"prompt": f"The ship {name} sails.\n\nWhich ship?", "completion": name} for name in ("Ann", "Bob", "Cy")
]


@contextmanager
def in_front_of(server, refuse=(), cut_after=None, takes=None):
    """A server that hands requests on; the first of them are refused with these status codes, all with a
    setting that it does not take.

    Yields its address and the paths that it was asked for. After so many answers it refuses all.
    """
    asked, refusals, lock = [], list(refuse), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body=None):
            with lock:
                chat = body is not None
                code = refusals.pop(0) if chat and refusals else 0
                if chat and cut_after is not None and asked.count(self.path) >= cut_after:
                    code = 400
                asked.extend([self.path] if not code else [])
            unknown = sorted({*json.loads(body)} - {*takes}) if body and takes else []
            if unknown:
                error = {"message": f"Unsupported parameter: {unknown[0]}", "param": unknown[0]}
                return self.send(400, json.dumps({"error": error}).encode(), {})
            if code:
                return self.send(code, b'{"error": {"message": "not now"}}', {"Retry-After-Ms": "5"})
            headers = {"Content-Type": "application/json", "Authorization": self.headers["Authorization"]}
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(server.address + self.path, body, headers), timeout=60
                ) as reply:
                    return self.send(200, reply.read(), {})
            except urllib.error.HTTPError as error:
                return self.send(error.code, error.read(), {})

        def send(self, code, body, headers):
            self.send_response(code)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as front:
        thread = threading.Thread(target=front.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{front.server_port}", asked
        finally:
            front.shutdown()


@pytest.fixture(scope="module")
def judge_server(untrained, tmp_path_factory):
    """A model that learned to say "supported" to whatever it is asked, served."""
    folder = tmp_path_factory.mktemp("judge")
    rows = [{"prompt": f"{n}\nVerdict:", "completion": VERDICTS[0]} for n in range(32)]
    data = write_rows(folder / "rows.jsonl", rows)
    config = SFTConfig(
        policy_checkpoint=str(untrained("judge", max_seq_len=256)),
        datasets=[data],
        max_steps=30,
        learning_rate=1e-2,
        batch_size=8,
        gradient_accumulation_steps=1,
        max_length=256,
        output_dir=str(folder / "run"),
        report_to=[],
    )
    with serving(run(config).model, name="judge") as server:
        yield server


@pytest.fixture(scope="module")
def babbler(untrained):
    """A model whose answers mean nothing, served."""
    with serving(untrained("babbler", max_seq_len=256)) as server:
        yield server


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "asked.jsonl", ROWS)
    labelled = [
        {"passage": f"The ship {n} sails.", "claim": "Ann", "verdict": VERDICTS[n % 2]} for n in range(8)
    ]
    write_rows(tmp_path / "labelled.jsonl", labelled)
    return tmp_path


LABELLED = {
    "name": "labelled.jsonl",
    "format": "classification",
    "labels": list(VERDICTS),
    "columns": {"label": "verdict"},
    "prompt": QUESTION.replace("{prompt}", "{passage}").replace("{answer}", "{claim}"),
}


def config(model, judge, **changes):
    values = dict(model=str(model), datasets=["asked.jsonl"], by="generate", max_new_tokens=4, judge=judge)
    return EvaluationConfig(**{**values, "judge_tokens": 8, "name": "it", **changes})


def test_verdicts_are_read_as_a_person_would():
    for said, word in {
        "supported": "supported",
        " Verdict: **Unsupported**.": "unsupported",
        "The text says nothing of it.\n\nContradicted": "contradicted",
        "<think>It may be supported or contradicted.</think>\nabstained": "abstained",
        "It is supported, since the text does not contradict it.": "supported",
        "supported\nHence the verdict: contradicted": "contradicted",
        "It is not supported by the text.": UNREADABLE,
        "It isn't fully supported.": UNREADABLE,
        "supported or unsupported": UNREADABLE,
        "true": UNREADABLE,
        "": UNREADABLE,
    }.items():
        assert read_verdict(said) == word, said


def test_the_reference_judges_to_the_letter():
    judge = ByReference(ABSTENTION)
    given = [
        ("Ann", "Ann"),
        ("Bob", "Ann"),
        ("Bob", ABSTENTION),
        (ABSTENTION, ABSTENTION),
        (ABSTENTION, "Ann"),
    ]
    words = [one.word for one in judge.judge([Claim("", answer, right) for answer, right in given])]
    assert words == ["supported", "contradicted", "unsupported", "abstained", "abstained"]


@pytest.mark.slow
def test_a_served_judge_is_checked_first_and_asked_nothing_twice(desk, chat_folder, judge_server):
    with in_front_of(judge_server, refuse=(429, 500, 503)) as (address, asked):
        folder = evaluate(config(chat_folder, f"{address}#judge", judge_check=[LABELLED]))
        check, result = folder.record["results"]
        assert check["role"] == "judge" and check["figures"]["accuracy"]["value"] == 0.5
        assert result["figures"]["supported"]["value"] == 1 and UNREADABLE not in result["figures"]
        assert folder.answers()[0]["source"] == "judge on labelled", "agreement is measured first"
        chats = [path for path in asked if path.endswith("completions")]
        assert len(chats) == 8 + 3, "whatever was refused was asked again, and nothing else twice"
        evaluate(config(chat_folder, f"{address}#judge", name="other"))
        again = [path for path in asked if path.endswith("completions")]
        assert len(again) == len(chats), "another evaluation takes the verdicts of the first"
    said = [json.loads(line) for line in (folder.path / SAID).read_text().splitlines()]
    assert len(said) == 11 and {one["model"] for one in said} == {"judge"}


@pytest.mark.slow
def test_an_evaluation_that_was_interrupted_asks_for_what_is_missing(desk, chat_folder, judge_server):
    with in_front_of(judge_server, cut_after=4) as (address, asked):
        wanted = config(chat_folder, f"{address}#judge", judge_check=[LABELLED], batch_size=2)
        with pytest.raises(LabError, match="not now") as caught:
            evaluate(wanted)
        assert caught.value.exit_code == 1
        kept = (EvaluationFolder(desk / "evaluations" / "it").path / SAID).read_text().splitlines()
        assert len(kept) == 4, "what was said before is kept"
    with in_front_of(judge_server) as (other, asked):
        # the same server elsewhere: another address, another judge
        folder = evaluate(config(chat_folder, f"{other}#judge", name="new", judge_check=[LABELLED]))
        assert len([path for path in asked if path.endswith("completions")]) == 11
        (folder.path / "answers.jsonl").unlink()
        record = folder.record
        folder.write({**record, "status": "stopped"})
        evaluate(config(chat_folder, f"{other}#judge", name="new", judge_check=[LABELLED]))
        assert len([path for path in asked if path.endswith("completions")]) == 11


def test_a_judge_that_takes_other_settings_is_asked_with_those(desk, chat_folder, babbler):
    with in_front_of(babbler, takes=("model", "messages", "max_completion_tokens")) as (address, _):
        folder = evaluate(config(chat_folder, address))
        assert len(folder.answers()) == 3 and folder.status == "done"
    with (
        in_front_of(babbler, takes=("model",)) as (address, _),
        pytest.raises(LabError, match=r"Unsupported parameter: max_tokens|Unsupported parameter: messages"),
    ):
        evaluate(config(chat_folder, address, name="none"))


def test_what_a_judge_says_in_other_words_is_counted(desk, chat_folder, babbler):
    folder = evaluate(config(chat_folder, babbler.address))
    figures = folder.record["results"][0]["figures"]
    assert figures[UNREADABLE]["value"] == 1 and figures["supported"]["value"] == 0
    answers = folder.answers()
    assert all(one["verdict"] == UNREADABLE and one["judge_said"] for one in answers) and len(answers) == 3


def test_what_is_wrong_with_a_judge_is_one_message(desk, chat_folder, babbler, untrained, monkeypatch):
    for judge, message in {
        "http://127.0.0.1:9#x": r"127\.0\.0\.1:9: cannot be reached .*start the server",
        f"{babbler.address}#gpt": "serves no model 'gpt', but lab",
        "http://": "is no address of a server",
        "https://me:secret@example.org#x": "a key stands in LLMLAB_API_KEY",
        "https://example.org/v1?key=secret#x": "a key stands in LLMLAB_API_KEY",
    }.items():
        with pytest.raises(LabError, match=message) as caught:
            command_line(
                [
                    "evaluate",
                    str(chat_folder),
                    "--task",
                    "asked.jsonl",
                    "--by",
                    "generate",
                    "--set",
                    f"judge={judge}",
                ]
            )
        assert caught.value.exit_code == 2 and "secret" not in str(caught.value)
    with pytest.raises(LabError, match="`judge_check` needs labels of supported"):
        evaluate(config(chat_folder, babbler.address, judge_check=["asked.jsonl"]))
    with pytest.raises(LabError, match="no task names one"):
        evaluate(EvaluationConfig(model=str(chat_folder), suite="passages", judge_check="labelled.jsonl"))
    with pytest.raises(ValueError, match="`judge_check` measures a `judge`"):
        config(chat_folder, "reference", judge_check=[LABELLED])
    with serving(untrained("key", max_seq_len=256), key="the-right-key") as server:
        monkeypatch.setenv("LLMLAB_API_KEY", "the-wrong-key")
        with pytest.raises(LabError, match="wrong API key: set LLMLAB_API_KEY"):
            evaluate(config(chat_folder, server.address, name="key"))
        monkeypatch.setenv("LLMLAB_API_KEY", "the-right-key")
        folder = evaluate(config(chat_folder, server.address, name="key"))
        content = b"".join(path.read_bytes() for path in folder.path.iterdir())
        assert b"the-right-key" not in content and folder.status == "done"

"""`llmlab chat http://...`: a conversation with a served model."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from llmlab.chat.marks import Marks
from llmlab.chat.remote import RemoteSession
from llmlab.chat.session import ChatSession
from llmlab.chat.terminal import from_pipe
from llmlab.config.chat import ChatSettings
from llmlab.data.collection import Collection
from llmlab.errors import LabError
from tests.serving.conftest import SETTINGS, serving


def local(server, settings):
    return ChatSession(server.engine.model, server.engine.tokenizer, settings, name="here")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(temperature=1.0, seed=4, top_p=0.8),
        dict(system_prompt="Speak."),
        dict(repetition_penalty=1.3, max_new_tokens=9),
    ],
)
def test_it_says_what_the_model_says_here(running, changes):
    settings = SETTINGS.model_copy(update=changes)
    remote, here = RemoteSession(running.address, settings), local(running, settings)
    for text in ("Call", "More"):  # the second turn has the first one before it
        pieces = []
        answer, stopped = remote.reply(text, pieces.append)
        assert answer == here.reply(text, lambda _: None)[0] and not stopped
        assert len(pieces) > 3, "it streams"
    assert remote.messages == here.messages


def test_a_base_model_is_given_texts(untrained):
    folder = untrained("base")
    (folder / "chat_template.jinja").unlink()
    with serving(folder) as server:
        remote = RemoteSession(f"{server.address}/v1/#lab", SETTINGS)
        assert not remote.chats
        said, _ = remote.reply("Call me", lambda _: None)
        assert said == local(server, SETTINGS).reply("Call me", lambda _: None)[0]


def test_settings_that_cannot_be_honoured_are_refused(running):
    with pytest.raises(LabError, match="`alignment` cannot be honoured by this server"):
        RemoteSession(running.address, ChatSettings(alignment=2))
    remote = RemoteSession(running.address, SETTINGS)
    console = Console(record=True, width=120)
    remote.command("/set temperature 0.5", console)
    remote.command("/set top_k 5", console)
    for line, message in (("show_alpha true", "no alignment"), ("alignment 2", "no alignment")):
        with pytest.raises(LabError, match=message):
            remote.command(f"/set {line}", console)
    remote.command("/set", console)
    shown = console.export_text()
    assert "top_p" in shown and "alignment" not in shown and remote.settings.top_k == 5


def test_a_served_model_beside_one_here(running, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Call me\n"), "utf-8"))
    sessions = [RemoteSession(running.address, SETTINGS), local(running, SETTINGS)]
    from_pipe(sessions, Marks(Collection(tmp_path / "collected.jsonl")))
    first, second = capsys.readouterr().out.split("here: ")
    assert first.strip() == f"{running.address}: {second.strip()}"


def test_stopping_an_answer_is_told_to_the_server(running):
    remote = RemoteSession(running.address, SETTINGS.model_copy(update={"max_new_tokens": 70}))
    pieces = []

    def write(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    assert remote.reply("Call me", write)[1] and len(pieces) == 3


def test_what_goes_wrong_is_one_message(running, chat_folder, monkeypatch):
    remote = RemoteSession(running.address, SETTINGS)
    with pytest.raises(LabError, match="reads 96 with its answer"):
        remote.reply("x " * 500, lambda _: None)
    assert not remote.messages, "a question without an answer is not remembered"
    with pytest.raises(LabError, match="serves no model 'gpt-4', but lab"):
        RemoteSession(f"{running.address}#gpt-4", SETTINGS)
    with pytest.raises(LabError, match=r"cannot be reached .*llmlab serve MODEL"):
        RemoteSession("http://127.0.0.1:9", SETTINGS)
    with serving(chat_folder, key="the-right-key") as server:
        with pytest.raises(LabError, match="wrong API key: set LLMLAB_API_KEY"):
            RemoteSession(server.address, SETTINGS)
        monkeypatch.setenv("LLMLAB_API_KEY", "the-right-key")
        assert RemoteSession(server.address, SETTINGS).reply("hi", lambda _: None)[0]


class OtherServer(BaseHTTPRequestHandler):
    """Something else that answers on a port."""

    def do_GET(self):
        body = (
            b'{"object": "list", "data": [{"id": "other", "object": "model", "created": 0, "owned_by": "x"}]}'
        )
        if self.path == "/page/v1/models":
            body = b"<html>hello</html>"
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_another_server_takes_no_settings_of_ours():
    with HTTPServer(("127.0.0.1", 0), OtherServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            assert RemoteSession(address, ChatSettings(temperature=0.2, top_p=0.5)).remote.name == "other"
            with pytest.raises(LabError, match="`top_k` cannot be honoured by this server"):
                RemoteSession(address, ChatSettings(top_k=3))
            with pytest.raises(LabError, match=r"does not answer as OpenAI's server does|serves no model"):
                RemoteSession(f"{address}/page", ChatSettings())
        finally:
            server.shutdown()

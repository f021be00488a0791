"""A server in a thread, and OpenAI's own client."""

import contextlib
import threading

import openai
import pytest
import uvicorn

from llmlab.config.chat import ChatSettings
from llmlab.models.load import load_model
from llmlab.serving.app import create_app
from llmlab.serving.engine import Engine
from llmlab.serving.listening import address_of, bound_socket
from llmlab.serving.requests import Served
from llmlab.serving.server import Server
from tests.waiting import PATIENCE, until

SETTINGS = ChatSettings(temperature=0, max_new_tokens=16)


class Running:
    """A server that answers.

    Attributes:
        engine: of it.
        address: `http://127.0.0.1:PORT`.
    """

    def __init__(self, engine, address):
        self.engine, self.address = engine, address
        self.clients = []

    def client(self, key="none", **options):
        made = openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, **options)
        self.clients.append(made)
        return made


@contextlib.contextmanager
def serving(folder, name="lab", key=""):
    """Serves a model until the block ends."""
    model, tokenizer = load_model(str(folder))
    engine = Engine(model.eval(), tokenizer, SETTINGS)
    listening = bound_socket("127.0.0.1", 0)
    listening.listen()
    config = uvicorn.Config(
        create_app(Served(engine, name, key)),
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = Server(config, engine)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    try:
        running = Running(engine, address_of(listening))
        yield running
        for client in running.clients:
            client.close()
    finally:
        engine.stop()
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()


@pytest.fixture(scope="session")
def running(chat_folder):
    with serving(chat_folder) as server:
        yield server

"""Answering until a signal comes."""

from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn

from llmlab.serving.app import create_app
from llmlab.serving.engine import Engine
from llmlab.serving.requests import Served

PATIENCE = 5  # seconds that open answers have to end


class Server(uvicorn.Server):
    """A server that ends what it is answering when it is asked to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        self.engine.stop()
        super().handle_exit(sig, frame)


def serve(served: Served, listening: socket.socket) -> None:
    """Answers until a signal comes; Ctrl+C is raised again as KeyboardInterrupt."""
    config = uvicorn.Config(
        create_app(served),
        log_config=None,
        access_log=False,
        log_level="critical",
        lifespan="off",
        timeout_graceful_shutdown=PATIENCE,
        server_header=False,
    )
    # uvicorn raises the signal again when all is closed; a shell that started it in the background had
    # Ctrl+C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Server(config, served.engine).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGINT, before)
        listening.close()

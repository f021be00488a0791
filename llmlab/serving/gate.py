"""Who is let in, and what becomes of an error that nobody expected."""

from __future__ import annotations

import contextlib
import secrets
import sys
import traceback

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmlab.serving.errors import ApiError
from llmlab.serving.keys import is_own_machine

HEALTH = "/health"


class Gate:
    """Lets in what brings the key, and without a key only what names this machine: a page in a browser here
    must not reach the server under a name of its own (DNS rebinding). An unexpected error becomes a 500 that
    tells its kind alone.
    """

    def __init__(self, app: ASGIApp, key: str = ""):
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if error := self._refused(scope["path"], Headers(scope=scope)):
            more = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            await JSONResponse(error.body(), error.status, headers=more)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except Exception as error:  # of ours; its message may hold what was asked
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno}"
            print(f"error: {type(error).__name__} in {where}", file=sys.stderr)
            with contextlib.suppress(RuntimeError):  # the answer had begun
                broken = ApiError(500, "the server failed")
                await JSONResponse(broken.body(), 500)(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> ApiError | None:
        if path == HEALTH:
            return None
        if not self.key:
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            return None if is_own_machine(name) else ApiError(403, "this server answers this machine alone")
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self.key.encode()):
            return None
        return ApiError(401, "wrong API key" if given else "no API key was given", "invalid_api_key")

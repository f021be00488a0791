"""What a client is told when something is wrong, in the form of OpenAI's server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.errors import LabError

TOO_LONG = "context_length_exceeded"


@dataclass
class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what is wrong.
        code: a word for programs, "" where there is none.
    """

    status: int
    message: str
    code: str = ""

    def body(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code or None}}


def refused(error: LabError, status: int = 400) -> ApiError:
    """Returns an error of the lab as one of the server."""
    from llmlab.chat.generation import PromptTooLong

    code = TOO_LONG if isinstance(error, PromptTooLong) else ""
    return ApiError(500 if error.exit_code == 1 else status, error.what, code)

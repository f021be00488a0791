"""A server of OpenAI's form, as clients see it: address, key, and one message for what goes wrong."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmlab.env_file import from_environment
from llmlab.errors import LabError
from llmlab.readable import shortened
from llmlab.trust import keep_secret

if TYPE_CHECKING:
    import openai

API_KEY = "LLMLAB_API_KEY"  # of servers, too: the environment or a .env file, never a config


def is_endpoint(name: str) -> bool:
    """Returns whether a name is the address of a server, not a model that is here."""
    return name.startswith(("http://", "https://"))


def address_and_model(url: str) -> tuple[str, str]:
    """Returns the address of a server and the name of the model behind its `#`, "" where there is none.

    Raises:
        ValueError: when it is no address, or a secret might stand in it.
    """
    address, _, model = url.partition("#")
    parts = urlsplit(address)
    if not parts.hostname:
        raise ValueError(f"{address!r} is no address of a server, as http://127.0.0.1:8000#NAME")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"the address of {parts.hostname} holds more than host and path: a key stands in {API_KEY}"
        )
    return address.rstrip("/"), model


def client_of(address: str, *, retries: int = 1, timeout: float = 600) -> openai.OpenAI:
    """Returns a client of a server. It asks again, later each time, where the server is busy (429), fails
    (5xx) or is not reached.

    Args:
        address: of it, with or without `/v1`.
        retries: how often a request is sent again.
        timeout: seconds that an answer may take.

    Raises:
        LabError: when the package is not there or the address is none.
    """
    if importlib.util.find_spec("openai") is None:
        raise LabError("a served model needs the openai package", remedy="pip install 'llmlab[serving]'")
    import openai

    key = from_environment([API_KEY])
    if key:
        keep_secret(API_KEY, key)
    url = address if address.endswith("/v1") else f"{address}/v1"
    try:
        return openai.OpenAI(base_url=url, api_key=key or "none", max_retries=retries, timeout=timeout)
    except Exception as error:  # an address that is none
        raise LabError(f"is no address of a server ({first_line(error)})", where=url) from None


@contextlib.contextmanager
def told(url: str, remedy: str = "`llmlab serve MODEL` starts a server") -> Iterator[None]:
    """Turns what the client raises into one message.

    Args:
        url: of the server.
        remedy: what to do when it cannot be reached.
    """
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        body: dict[str, Any] = error.body if isinstance(error.body, dict) else {}
        message = str(body.get("message") or first_line(error))
        key = f"set {API_KEY}, or write it to .env" if error.status_code in (401, 403) else ""
        raise LabError(shortened(message, 300), where=url, remedy=key) from None
    except openai.APIConnectionError as error:
        reason = first_line(error.__cause__ or error)
        raise LabError(f"cannot be reached ({reason})", where=url, remedy=remedy) from None
    except openai.APIError as error:  # in the middle of an answer
        raise LabError(shortened(first_line(error), 300), where=url) from None
    except (ValueError, TypeError, AttributeError) as error:  # an answer of another form
        raise LabError(f"does not answer as OpenAI's server does ({first_line(error)})", where=url) from None


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, else what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

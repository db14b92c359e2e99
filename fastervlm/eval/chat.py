"""A chat model behind an OpenAI-compatible endpoint: asked at a bounded rate, and again after what may pass."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from encoders.errors import UserError
from fastervlm.eval.deadline import TimedHttp, TimedHttps

_T = TypeVar("_T")
LONGEST_WAIT = 60.0
LONGEST_TIMEOUT = 86_400.0
SLOWEST = 0.01
MOST_DOUBLINGS = 10
LONGEST_REPLY = 1 << 20
PASSING = (408, 409, 425, 429)
FATAL = (401, 402, 403, 404, 405)


class NoReply(Exception):
    """The endpoint gave no reply to one request; the message says why, `everybody` whether others will fare no better."""

    def __init__(self, message: str, everybody: bool = False) -> None:
        super().__init__(message)
        self.everybody = everybody


class RateLimit:
    """Lets callers of all threads through so that they are evenly spaced."""

    def __init__(self, per_minute: float | None) -> None:
        if per_minute is not None and not per_minute >= SLOWEST:
            raise UserError(f"--requests-per-minute is {per_minute}; it must be at least {SLOWEST}.")
        self.spacing = 60 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> float:
        """The seconds until the caller's turn, which is now taken."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.spacing
        return turn - now


@dataclass(frozen=True)
class Chat:
    """A chat model; `key` is sent as a bearer token if there is one, `timeout` are the seconds that a whole reply may take.

    `base` is the address that `/chat/completions` hangs on, such as https://api.openai.com/v1. If the endpoint is busy, broken
    or silent, a request is tried again `retries` times: after `pause` seconds at first, then later and later, or when a
    Retry-After header says; `say` is told why, once for each reason. Once `stopped` is set nobody asks any longer.
    """

    base: str
    model: str
    key: str | None = field(default=None, repr=False)
    rate: RateLimit = field(default_factory=lambda: RateLimit(None))
    timeout: float = 60.0
    retries: int = 6
    pause: float = 1.0
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    _said: dict[str, object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not _is_address(self.base):
            raise UserError(f"--api-base {self.base!r} is no address; give one such as https://api.openai.com/v1.")
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise UserError(f"--timeout is {self.timeout}; it must be above 0 and at most {LONGEST_TIMEOUT:.0f} seconds.")
        if self.key is not None and not _is_key(self.key):
            raise UserError("The key in OPENAI_API_KEY holds characters that no key has; copy it again.")

    def __call__(self, messages: list[dict[str, Any]], **fields: Any) -> str:
        """What the model says to the messages, at temperature 0; `fields` are further ones of the request's body.

        Raises:
            NoReply: it says nothing to these, however often it is asked.
            UserError: it will say nothing to any: the key is wrong, or there is no such address or model.
        """
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0, **fields}).encode()
        return self._asked(lambda: _content(self._send("chat/completions", body)))

    def models(self) -> list[dict[str, Any]]:
        """What the endpoint says of its models.

        Raises:
            NoReply: it does not say.
            UserError: as for a call.
        """
        return self._asked(lambda: _models(self._send("models")))

    def _asked(self, ask: Callable[[], _T]) -> _T:
        for attempt in range(self.retries + 1):
            self._sleep(self.rate.wait())
            try:
                return ask()
            except _Passing as passing:
                if attempt == self.retries:
                    raise NoReply(f"{passing}, {attempt + 1} times", everybody=True) from None
                self._tell(str(passing))
                self._sleep(_pause(self.pause * 2.0 ** min(attempt, MOST_DOUBLINGS), passing.after))
        raise AssertionError("unreachable")

    def _tell(self, reason: str) -> None:
        mine = object()
        if self._said.setdefault(reason, mine) is mine:  # one step, whatever other threads do
            self.say(f"{reason}; it is asked again.")

    def _sleep(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise NoReply("the run was stopped")

    def _send(self, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.base.rstrip('/')}/{path}", body, headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                return response.read(LONGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Passing(f"{self.base} cannot be reached ({getattr(error, 'reason', None) or error})") from None

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        said = f"{self.base} answers {error.code} ({_message(error)})"
        if error.code in PASSING or error.code >= 500:
            raise _Passing(said, _retry_after(error.headers)) from None
        if error.code in FATAL or error.code < 400:
            self.stopped.set()
            raise UserError(f"{said}; look at the address, the model's name and the key in OPENAI_API_KEY.") from None
        raise NoReply(said) from None


class _Passing(Exception):
    """A failure that may pass, in `after` seconds if the endpoint says so."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """None, so that the redirection is an error."""


_OPENER = urllib.request.build_opener(_NoRedirect, TimedHttp, TimedHttps)


def _is_address(base: str) -> bool:
    """Whether a connection to it can be tried: http(s), a host that can be looked up, and no space or letter outside ASCII."""
    try:
        parts = urlsplit(base)
        host, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return False
    known = parts.scheme in ("http", "https") and parts.username is None
    return known and bool(host) and all("!" <= letter <= "~" for letter in base)


def _is_key(key: str) -> bool:
    """Whether it can stand in a header: printable ASCII."""
    return bool(key) and key.isascii() and key.isprintable()


def _content(body: bytes) -> str:
    """The text in a response; what is no such response may be better the next time."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _Passing("the response is no chat completion") from None
    if not isinstance(text, str):
        raise _Passing("the response holds no text")
    return text


def _models(body: bytes) -> list[dict[str, Any]]:
    """The models in a response."""
    try:
        models = json.loads(body)["data"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _Passing("the response is no list of models") from None
    return [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []


def _message(error: urllib.error.HTTPError) -> str:
    """What the endpoint says is wrong, in at most 200 characters."""
    try:
        said = error.read(LONGEST_REPLY)
    except (OSError, HTTPException):
        return str(error.reason)
    try:
        text = str(json.loads(said)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        text = said.decode(errors="replace").strip() or str(error.reason)
    return " ".join(text.split())[:200]


def _retry_after(headers: Message) -> float | None:
    """The seconds that a Retry-After header names, as a number or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _pause(usual: float, after: float | None) -> float:
    """Seconds until the next attempt: as told, else as usual and up to as much again at random; never above a minute."""
    wait = after if after is not None else usual * (1 + random.random())
    return min(LONGEST_WAIT, wait)

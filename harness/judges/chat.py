"""One request to a chat-completions endpoint that may be slow, broken or hostile.

A request has a total time, a largest size and follows no redirect. What may pass by itself (429, 5xx, no connection, no
answer in time) is tried up to TRIES times; an answer that is no chat completion is tried twice. The key stands in the
request's header and nowhere else: it is taken out of every text that is shown.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from harness.errors import InputError
from harness.judges.settings import KEYS, EndpointSettings

TRIES = 5
MOST_BYTES = 1_000_000
MOST_TOKENS = 10_000_000  # that a server is believed to have counted for one request
MOST_SHOWN = 200  # characters of a server's text in an error
ADVICE = {
    401: f"Set {KEYS[0]} (or {KEYS[1]}) to a key that is valid there.",
    403: f"Set {KEYS[0]} (or {KEYS[1]}) to a key that may use this model.",
    404: "Check the model's name and the address, which usually ends in /v1.",
    429: "Lower STANCE_JUDGE_PER_MINUTE or STANCE_JUDGE_PARALLEL, or see whether the account has credit.",
}
CHECK = "Check that the address is that of an OpenAI-compatible endpoint (it usually ends in /v1) and the model's name."
LATER = "Check the address and the server, and try again."


@dataclass(frozen=True)
class Completion:
    """What the model said ("" for nothing), and the tokens the server counted (0 where it did not)."""

    text: str
    tokens_in: int
    tokens_out: int


class Pace:
    """A token bucket that holds one token: turns are 60 / `per_minute` seconds apart, so that no minute has more."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._gap = 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = clock()

    async def turn(self) -> None:
        """Wait for a turn; turns are given in the order in which they are asked for."""
        now = self._clock()
        start = max(now, self._next)
        self._next = start + self._gap
        await self._sleep(start - now)


class _Failed(Exception):  # noqa: N818 (never leaves this file)
    """A try that gave no completion: what came, what to do, after how many tries to give up, seconds the server asks for."""

    def __init__(self, came: str, advice: str, tries: int = 1, wait: float = 0.0) -> None:
        super().__init__(came)
        self.came, self.advice, self.tries, self.wait = came, advice, tries, wait


class Chat:
    """Asks one endpoint. `url` ends before /chat/completions; `key` may be ""."""

    def __init__(self, url: str, key: str, settings: EndpointSettings) -> None:
        self.url = url
        self._key, self._settings = key, settings
        self._pace = Pace(settings.per_minute)

    def client(self) -> httpx.AsyncClient:
        """Connections for one event loop; use it in `async with`."""
        # httpx limits single reads, which a slow drip passes: the total is limited around it instead.
        limits = httpx.Limits(max_connections=self._settings.parallel)
        return httpx.AsyncClient(timeout=None, follow_redirects=False, limits=limits)

    async def complete(self, client: httpx.AsyncClient, body: bytes) -> Completion:
        """The answer to a request body.

        Raises:
            InputError: no completion came, and trying again does not help or did not.
        """
        first, longest = self._settings.backoff, self._settings.longest_wait
        backoff = wait_exponential_jitter(initial=first, max=longest, jitter=first)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Failed),
            stop=lambda state: state.attempt_number >= _failure(state).tries,
            wait=lambda state: max(backoff(state), min(_failure(state).wait, longest)),
            reraise=True,
        )
        try:
            return await retrying(self._try, client, body)
        except _Failed as failed:
            tries = retrying.statistics["attempt_number"]
            after = f" ({tries} tries)" if tries > 1 else ""
            raise InputError(
                f"The judge at {self.url} {failed.came}{after}; expected a chat completion. {failed.advice}"
            ) from None

    async def _try(self, client: httpx.AsyncClient, body: bytes) -> Completion:
        await self._pace.turn()
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._post(client, body)
        except TimeoutError:
            limit = f"{self._settings.timeout:g} seconds"
            advice = f"{LATER} A slow model needs a longer STANCE_JUDGE_TIMEOUT."
            raise _Failed(f"gave no whole answer in {limit}", advice, TRIES) from None
        except httpx.HTTPError as error:
            reason = self._shown(str(error)) or "no reason given"
            raise _Failed(f"could not be talked to ({type(error).__name__}: {reason})", LATER, TRIES) from None

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> Completion:
        # Without compression, so that a small response cannot become a large one.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        async with client.stream("POST", f"{self.url}/chat/completions", content=body, headers=headers) as response:
            if 300 <= response.status_code < 400:
                target = self._shown(response.headers.get("location", "nowhere"))
                raise _Failed(f"redirects to {target}, which is not followed", "Give the final address.")
            received = bytearray()
            async for part in response.aiter_raw():
                received += part
                if len(received) > MOST_BYTES:
                    raise _Failed(f"answered with more than {MOST_BYTES:,} bytes", CHECK)
        status = response.status_code
        if status == 200:
            return self._completion(bytes(received))
        passing = status == 429 or status >= 500
        raise _Failed(
            f"answered {status} ({self._shown(received.decode(errors='replace')) or 'without a text'})",
            ADVICE.get(status, LATER if passing else CHECK),
            TRIES if passing else 1,
            _seconds(response.headers.get("retry-after", "")),
        )

    def _completion(self, received: bytes) -> Completion:
        try:
            answer = json.loads(received)
            content = answer["choices"][0]["message"]["content"]
            if not isinstance(content, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            shown = self._shown(received.decode(errors="replace")) or "nothing"
            raise _Failed(f"answered with something else: {shown}", CHECK, tries=2) from None
        usage = answer.get("usage")
        return Completion(content or "", _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))

    def _shown(self, text: str) -> str:
        """A server's text for an error: on one line, without control characters and the key, cut."""
        line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
        return (line.replace(self._key, "[key]") if self._key else line)[:MOST_SHOWN]


def _failure(state: RetryCallState) -> _Failed:
    failed = state.outcome.exception() if state.outcome else None
    assert isinstance(failed, _Failed)
    return failed


def _seconds(retry_after: str) -> float:
    """Seconds a Retry-After header asks for, which gives them or a date; 0 for anything else."""
    try:
        if retry_after.isdecimal():
            return float(retry_after)
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
        return 0.0


def _count(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 < count <= MOST_TOKENS else 0

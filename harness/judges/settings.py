"""How an endpoint is asked, from environment variables: STANCE_JUDGE_PER_MINUTE, STANCE_JUDGE_TIMEOUT and so on."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from harness.errors import InputError

PREFIX = "STANCE_JUDGE_"
KEYS = (f"{PREFIX}KEY", "OPENAI_API_KEY")
TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class EndpointSettings:
    """Each field is read from STANCE_JUDGE_ and its name in capitals.

    Attributes:
        per_minute: requests a minute at most, repeated ones counted, evenly spaced.
        parallel: requests in flight at most.
        timeout: seconds for one request, from connecting to its last byte.
        price_in: dollars per million tokens sent; 0 is unknown.
        price_out: dollars per million tokens received; 0 is unknown.
        most_dollars: nothing is asked when what was spent and the estimate exceed it; None is no limit.
        cache: keep labels on disk, and ask only for those that are not there.
        backoff: seconds before the second try; doubled before each further one, with jitter.
        longest_wait: seconds between two tries at most, whatever the server's Retry-After says.

    Raises:
        InputError: a value out of range, or a cost limit without prices.
    """

    per_minute: float = 300.0
    parallel: int = 8
    timeout: float = 60.0
    price_in: float = 0.0
    price_out: float = 0.0
    most_dollars: float | None = None
    cache: bool = True
    backoff: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        for name in ("per_minute", "parallel", "timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"{PREFIX}{name.upper()} is {getattr(self, name)}; expected a number above 0.")
        for name in ("price_in", "price_out", "most_dollars", "backoff", "longest_wait"):
            if not (getattr(self, name) or 0.0) >= 0:
                raise InputError(f"{PREFIX}{name.upper()} is {getattr(self, name)}; expected 0 or more.")
        if self.most_dollars is not None and not (self.price_in and self.price_out):
            raise InputError(
                f"{PREFIX}MOST_DOLLARS is {self.most_dollars}, but what a token costs is not known; set "
                f"{PREFIX}PRICE_IN and {PREFIX}PRICE_OUT (dollars per million tokens) as well, or leave it out."
            )

    @classmethod
    def from_environment(cls) -> EndpointSettings:
        """The defaults, changed by the variables that are set and not blank.

        Raises:
            InputError: a value that is no number (of CACHE: no truth value), or is out of range.
        """
        texts = {one: os.environ.get(f"{PREFIX}{one.name.upper()}", "").strip() for one in fields(cls)}
        return cls(**{one.name: _read(one.name, text, one.default) for one, text in texts.items() if text})

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        """Their price; 0 where prices are not known."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def _read(name: str, text: str, default: Any) -> Any:
    kind, expected = float, "a number"
    if isinstance(default, bool):
        kind, expected = _truth, "1 or 0"
    elif isinstance(default, int):
        kind, expected = int, "a whole number"
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{PREFIX}{name.upper()} is {text!r}; expected {expected}.") from None


def _truth(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise ValueError
    return TRUTH[text.lower()]


def key_from_environment() -> str:
    """The API key, or "" where none is set.

    Raises:
        InputError: a key that no HTTP header can carry; it is not shown.
    """
    for variable in KEYS:
        if key := os.environ.get(variable, "").strip():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"{variable} holds a blank, a line break or a character beyond ASCII; expected an API key as its "
                    "provider shows it. Set it again."
                )
            return key
    return ""

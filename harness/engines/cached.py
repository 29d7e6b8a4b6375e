"""Answers kept on disk: what was asked of the very same model before is not asked again.

Each chunk of answers is committed before the next one is asked, so that a kill costs one chunk at most. Asking in chunks
batches requests differently, which moves low-precision scores as much as any other change of batches does.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.characters import one_line
from harness.engines import DeadEngineError, Engine, Tokens, check_length
from harness.errors import InputError
from harness.files import raise_unwritable
from harness.models import cache_folder
from harness.progress import note
from harness.runs import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = 1
WAIT = 30.0  # seconds for another process to finish writing
_FULL = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_READONLY: errno.EROFS}
CHUNK = 256  # requests between two commits
ADVICE = "Remove it (its answers will be asked again), or set STANCE_CACHE to another folder."


def answers_file() -> Path:
    """Where answers are kept unless another file is given."""
    return cache_folder() / "answers.sqlite"


@dataclass(frozen=True)
class StoreInfo:
    """How much a store holds; `size` is in bytes, what has not reached the main file yet included."""

    file: Path
    entries: int
    size: int


class AnswerStore:
    """Key -> value in one SQLite file, which several processes may use at once. What is there is never replaced.

    Raises:
        InputError: the file is no such store, or cannot be read or written; so do all methods.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = answers_file() if file is None else file
        with self._usable():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # No isolation level: transactions are those written here.
            self._base = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None)
            try:
                self._make()
            except BaseException:
                self._base.close()
                raise

    def get_many(self, keys: Iterable[str]) -> dict[str, str]:
        """Those of the keys that have a value."""
        statement = "SELECT key, value FROM answers WHERE key IN (SELECT value FROM json_each(?))"
        with self._usable():
            return dict(self._base.execute(statement, (json.dumps(list(keys)),)))

    def put_many(self, items: Mapping[str, str]) -> None:
        """Keep values, all or none of them; they are on disk when this returns."""
        with self._usable(), self._writing():
            # Not OR IGNORE, which would also drop a value that is missing without a word.
            self._base.executemany("INSERT INTO answers VALUES (?, ?) ON CONFLICT (key) DO NOTHING", items.items())

    def info(self) -> StoreInfo:
        """Entries and size."""
        with self._usable():
            (entries,) = self._base.execute("SELECT count(*) FROM answers").fetchone()
            parts = [self.file, self.file.with_name(self.file.name + "-wal")]
            return StoreInfo(self.file, entries, sum(part.stat().st_size for part in parts if part.exists()))

    def clear(self) -> int:
        """Remove every entry, also under processes that use the file, and give the space back.

        Returns:
            entries removed.
        """
        with self._usable():
            with self._writing():
                removed = self._base.execute("DELETE FROM answers").rowcount
            self._base.execute("VACUUM")
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return removed

    def close(self) -> None:
        self._base.close()

    def _make(self) -> None:
        """Write the schema into a new file; refuse a file that has another one."""
        with self._writing():
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            tables = [name for (name,) in self._base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if not tables and version == 0:
                self._base.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
                self._base.execute(f"PRAGMA user_version = {SCHEMA}")
            elif tables != ["answers"] or version != SCHEMA:
                raise InputError(
                    f"The answers' cache {self.file} has schema {version} and tables {', '.join(tables) or 'none'}; "
                    f"this release reads schema {SCHEMA} with the table answers. {ADVICE}"
                )
        # After the check, because it is written into the file: somebody else's database stays as it was.
        self._base.execute("PRAGMA journal_mode=WAL").fetchone()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._base:
            self._base.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a closed store, say: not the file's fault
            raise
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last: damaged, and its error quotes that
            if (number := _FULL.get(getattr(error, "sqlite_errorcode", -1))) is not None:
                raise_unwritable(self.file, OSError(number, os.strerror(number)))
            reason = one_line(str(error))
            raise InputError(
                f"The answers' cache {self.file} cannot be used ({reason}); expected a file that stance wrote and may "
                f"write. {ADVICE}"
            ) from None


class CachedEngine:
    """See `harness.engines.Engine`. Answers from the store where it can; the engine is started at the first miss.

    `identity` must name all that an answer depends on besides the request: weights, adapter, intervention, engine,
    dtype, length limit, package versions, and the order of requests where a run is to show what the order changes.

    What a sampled answer depends on is its seed plus its place, as in both engines: gaps in sampled answers are filled
    run by run, each asked with the seed moved on to its first place.

    Attributes:
        asked: requests that were put to the engine and kept.
        hits: requests it was spared: those in the store, and repetitions within one call.
    """

    def __init__(
        self,
        start: Callable[[], Engine],
        store: AnswerStore,
        identity: str,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        chunk: int = CHUNK,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; expected at least 1.")
        self.name, self.tokenizer, self.max_length = name, tokenizer, max_length
        self.hits = self.asked = 0
        self._start, self._store, self._identity, self._chunk = start, store, identity, chunk
        self._engine: Engine | None = None
        self._closed = self._died = False

    def score_continuations(self, requests: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        """Raises InputError for a request that is too long, as the engine does, and for a store that fails."""
        for context, continuation in requests:
            check_length(context, len(continuation), self.max_length)
        keys = [self._key("continuation", *request) for request in requests]
        found = self._answers(keys, lambda engine, rows: engine.score_continuations([requests[n] for n in rows]))
        return [(float(score), bool(greedy)) for score, greedy in found]

    def score_choices(self, requests: list[tuple[Tokens, Tokens]]) -> list[list[float]]:
        """Raises InputError for a request that is too long, as the engine does, and for a store that fails."""
        for context, _ in requests:
            check_length(context, 1, self.max_length)
        keys = [self._key("choices", *request) for request in requests]
        return self._answers(keys, lambda engine, rows: engine.score_choices([requests[n] for n in rows]))

    def generate(
        self, prompts: list[Tokens], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Raises InputError for a request that is too long, as the engine does, and for a store that fails."""
        for prompt in prompts:
            check_length(prompt, max_tokens, self.max_length)
        sampled = temperature > 0
        settings = [max_tokens, stop, float(temperature), seed]
        keys = [
            self._key("generate", prompt, [*settings, place] if sampled else settings)
            for place, prompt in enumerate(prompts)
        ]

        def ask(engine: Engine, rows: list[int]) -> list[str]:
            first = seed + rows[0] if sampled else seed
            return engine.generate([prompts[n] for n in rows], max_tokens, stop, temperature, first)

        return self._answers(keys, ask, unbroken=sampled)

    def close(self) -> None:
        """Close the engine if it was started; the store stays open."""
        self._closed = True
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _key(self, kind: str, prompt: Tokens, more: list[Any]) -> str:
        return digest([self._identity, kind, prompt, more])

    def _answers(
        self, keys: list[str], ask: Callable[[Engine, list[int]], list[Any]], unbroken: bool = False
    ) -> list[Any]:
        """One answer per key. `unbroken`: rows that are asked together must be neighbours."""
        found = self._store.get_many(set(keys))
        missing: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key not in found:
                missing.setdefault(key, row)
        self.hits += len(keys) - len(missing)
        for rows in _chunks(list(missing.values()), self._chunk, unbroken):
            answers = self._ask(ask, rows)
            # Scores may be NumPy's; the shortest decimals that JSON writes read back as the same floats.
            fresh = {keys[n]: json.dumps(a, default=float) for n, a in zip(rows, answers, strict=True)}
            self._store.put_many(fresh)
            self.asked += len(rows)
            # Read back, so that this run has what later ones will have even if another process was first.
            found |= fresh | self._store.get_many(fresh)
        try:
            return [json.loads(found[key]) for key in keys]
        except ValueError:
            raise InputError(
                f"The answers' cache {self._store.file} holds an answer that is not readable: the file was altered. {ADVICE}"
            ) from None

    def _ask(self, ask: Callable[[Engine, list[int]], list[Any]], rows: list[int]) -> list[Any]:
        """Answers to the rows; an engine that dies over them is started again, once."""
        try:
            return ask(self._started(), rows)
        except DeadEngineError as died:
            if self._died:
                raise
            self._died, self._engine = True, None
            note(f"{str(died).partition('. ')[0]}; it is started again for what is left to ask.")
        return ask(self._started(), rows)

    def _started(self) -> Engine:
        if self._closed:
            raise RuntimeError("This engine is closed.")
        if self._engine is None:
            self._engine = self._start()
        return self._engine


def _chunks(rows: list[int], size: int, unbroken: bool) -> Iterator[list[int]]:
    chunk: list[int] = []
    for row in rows:
        if chunk and (len(chunk) == size or (unbroken and row != chunk[-1] + 1)):
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk

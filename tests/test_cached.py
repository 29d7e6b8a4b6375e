"""The answers' cache: what comes out is what the engine would have said, and it is asked for what is new alone."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as t
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scripted import Scripted

from harness.cli import main
from harness.engines import Settings, check_length
from harness.engines.cached import AnswerStore, CachedEngine
from harness.engines.torch import TorchEngine
from harness.errors import InputError

LIMIT = 64
Requests = list[tuple[list[int], list[int]]]


class Hashing:
    """Every answer is a hash of all it may depend on; what is asked is written down, and asking may fail or take time."""

    name, tokenizer, max_length = "hashing", None, LIMIT

    def __init__(self, spare: int = 0, calls: int | None = None, pause: float = 0.0, salt: str = "") -> None:
        self.seen: list[list[Any]] = []
        self.closed = 0
        self._spare, self._calls, self._pause, self._salt = spare, calls, pause, salt

    def _hear(self, requests: list[Any]) -> None:
        if self._calls is not None and len(self.seen) >= self._calls:
            raise KeyboardInterrupt
        time.sleep(self._pause)
        self.seen.append(list(requests))

    def _number(self, *parts: Any) -> float:
        return int.from_bytes(hashlib.sha256(repr([self._salt, *parts]).encode()).digest()[:8], "big") / 2**57

    def score_continuations(self, requests: Requests) -> list[tuple[float, bool]]:
        for context, continuation in requests:
            check_length(context, len(continuation) + self._spare, self.max_length)
        self._hear(requests)
        numbers = [self._number("c", context, continuation) for context, continuation in requests]
        return [(-n, n > 64) for n in numbers]

    def score_choices(self, requests: Requests) -> list[list[float]]:
        self._hear(requests)
        return [[-self._number("o", context, option) for option in options] for context, options in requests]

    def generate(
        self, prompts: list[list[int]], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        self._hear(prompts)
        drawn = [(temperature, seed + n) if temperature else None for n in range(len(prompts))]
        return [f"é\n{self._number(p, max_tokens, stop, d)}" for p, d in zip(prompts, drawn, strict=True)]

    def close(self) -> None:
        self.closed += 1


def cached(store: AnswerStore, inner: Any, identity: str = "base", chunk: int = 4, **more: Any) -> CachedEngine:
    given = {"name": inner.name, "tokenizer": inner.tokenizer, "max_length": inner.max_length, **more}
    return CachedEngine(lambda: inner, store, identity, chunk=chunk, **given)


def never() -> Any:
    raise AssertionError("the engine was started")


def from_disk(store: AnswerStore, identity: str = "base") -> CachedEngine:
    """One that cannot ask."""
    return CachedEngine(never, store, identity, "hashing", None, LIMIT)  # type: ignore[arg-type]


def requests(count: int, seed: int = 0) -> Requests:
    draw = random.Random(seed)
    return [([draw.randrange(100) for _ in range(5)], [draw.randrange(100) for _ in range(3)]) for _ in range(count)]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    return [context for context, _ in requests(count, seed)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    with closing(AnswerStore(tmp_path / "quite" / "deep" / "answers.sqlite")) as made:
        yield made


METHODS = {
    "continuations": ("score_continuations", requests(10), ()),
    "choices": ("score_choices", requests(10), ()),
    "greedy": ("generate", prompts(10), (7, ["\n", "."])),
    "sampled": ("generate", prompts(10), (7, ["\n"], 0.7, 11)),
}
every_method = pytest.mark.parametrize("method", METHODS)


def ask(engine: Any, method: str, asked: Any = None) -> Any:
    name, usual, more = METHODS[method]
    return getattr(engine, name)(usual if asked is None else asked, *more)


@every_method
def test_cached_equals_uncached_and_the_second_run_asks_nothing(store: AnswerStore, method: str) -> None:
    inner = Hashing()
    first, direct = cached(store, inner), ask(Hashing(), method)
    assert ask(first, method) == direct
    assert (first.hits, first.asked, [len(c) for c in inner.seen]) == (0, 10, [4, 4, 2])
    with closing(AnswerStore(store.file)) as reopened:
        second = from_disk(reopened)
        again = ask(second, method)
    assert again == direct and [type(a) for a in again] == [type(a) for a in direct]
    assert (second.hits, second.asked) == (10, 0)


@every_method
def test_no_requests_ask_nothing(store: AnswerStore, method: str) -> None:
    assert ask(from_disk(store), method, []) == []


def test_every_real_engine_answer_comes_back_bit_for_bit(store: AnswerStore, tiny: Any) -> None:
    engine = TorchEngine(tiny("llama"), t.tokenizer(), Settings(max_length=LIMIT))
    asked = [(t.tokens(c, seed=c), t.tokens(n, seed=c + 50)) for c, n in ((3, 3), (9, 1), (4, 4), (12, 6), (5, 2))]
    starts = [context for context, _ in asked]

    def answers(engine: Any) -> list[Any]:
        return [
            engine.score_continuations(asked),
            engine.score_choices(asked),
            engine.generate(starts, 9, ["a"]),
            engine.generate(starts, 9, ["a"], 1.0, 3),
        ]

    direct = answers(engine)
    assert direct[2] != direct[3]
    assert answers(cached(store, engine, chunk=100)) == direct
    assert answers(from_disk(store)) == direct


def test_real_sampled_answers_fill_gaps_as_if_all_were_asked(store: AnswerStore, tiny: Any) -> None:
    engine = TorchEngine(tiny("llama"), t.tokenizer(), Settings(max_length=LIMIT))
    starts = [t.tokens(4)] * 7  # one prompt, so that the place alone makes the difference
    direct = engine.generate(starts, 9, [], 1.0, 3)
    assert len(set(direct)) == 7
    known = [starts[0] if n in (1, 2, 5) else t.tokens(4, seed=9) for n in range(7)]
    cached(store, engine).generate(known, 9, [], 1.0, 3)
    assert cached(store, engine).generate(starts, 9, [], 1.0, 3) == direct


def test_scripted_engines_answer_through_the_cache(store: AnswerStore) -> None:
    scripted = Scripted(says=lambda prompt: prompt.upper())
    starts = [list(scripted.tokenizer(text)["input_ids"]) for text in ("left", "right", "left")]  # type: ignore[arg-type]
    engine = cached(store, scripted)
    assert engine.generate(starts, 5, []) == ["LEFT", "RIGHT", "LEFT"]
    assert (engine.name, engine.max_length) == ("scripted", 10_000)
    assert engine.tokenizer is scripted.tokenizer


def test_odd_floats_come_back_as_they_were(store: AnswerStore) -> None:
    values = [0.1 + 0.2, -1e-320, -math.inf, -0.0, 1 / 3, float(np.float32(-1.1))]

    class Odd(Hashing):
        def score_choices(self, requests: Requests) -> list[list[float]]:
            return [[*values, math.nan, np.float32(-1.1)] for _ in requests]  # type: ignore[list-item]

    for engine in (cached(store, Odd()), from_disk(store)):
        found = engine.score_choices(requests(1))[0]
        assert [v.hex() for v in found[:6]] == [v.hex() for v in values]
        assert math.isnan(found[6]) and type(found[7]) is float and found[7] == np.float32(-1.1)


@every_method
def test_a_run_that_broke_off_goes_on_with_the_rest(store: AnswerStore, method: str) -> None:
    broken = cached(store, Hashing(calls=1))
    with pytest.raises(KeyboardInterrupt):
        ask(broken, method)
    assert (broken.asked, store.info().entries) == (4, 4)
    inner = Hashing()
    resumed = cached(store, inner)
    assert ask(resumed, method) == ask(Hashing(), method)
    assert [r for call in inner.seen for r in call] == METHODS[method][1][4:]
    assert (resumed.hits, resumed.asked) == (4, 6)


CHANGES = {
    "identity": ([[1], [2]], [4, ["x"], 0.0, 0], "other"),
    "prompt": ([[1, 2], [2]], [4, ["x"], 0.0, 0], "base"),
    "max_tokens": ([[1], [2]], [5, ["x"], 0.0, 0], "base"),
    "stop": ([[1], [2]], [4, ["x", "y"], 0.0, 0], "base"),
    "temperature": ([[1], [2]], [4, ["x"], 0.5, 0], "base"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_question_is_asked(store: AnswerStore, change: str) -> None:
    cached(store, Hashing()).generate([[1], [2]], 4, ["x"], 0.0, 0)
    starts, more, identity = CHANGES[change]
    salt = "" if identity == "base" else identity
    inner = Hashing(salt=salt)
    assert cached(store, inner, identity).generate(starts, *more) == Hashing(salt=salt).generate(starts, *more)
    assert inner.seen == [starts if change != "prompt" else [[1, 2]]]


@pytest.mark.parametrize("more", [(1.0, 1), (0.5, 0)])
def test_another_draw_is_asked(store: AnswerStore, more: tuple[float, int]) -> None:
    cached(store, Hashing()).generate([[1], [2]], 4, [], 1.0, 0)
    assert cached(store, Hashing()).generate([[1], [2]], 4, [], *more) == Hashing().generate([[1], [2]], 4, [], *more)


def test_kinds_and_the_border_between_prompt_and_continuation_are_told_apart(store: AnswerStore) -> None:
    one, other = [([1, 2], [3])], [([1], [2, 3])]
    for asked in (one, other):
        assert cached(store, Hashing()).score_continuations(asked) == Hashing().score_continuations(asked)
        assert cached(store, Hashing()).score_choices(asked) == Hashing().score_choices(asked)
    assert store.info().entries == 4


def test_the_base_in_another_order_is_not_answered_from_the_base(store: AnswerStore) -> None:
    asked = requests(6)
    cached(store, Hashing(), "weights=1 order_seed=None").score_continuations(asked)
    inner = Hashing()
    cached(store, inner, "weights=1 order_seed=7", chunk=10).score_continuations(asked[::-1])
    assert inner.seen == [asked[::-1]]  # in the order they were given, which is what that run is about


@pytest.mark.parametrize("method", ["continuations", "choices", "greedy"])
def test_repetitions_are_asked_once(store: AnswerStore, method: str) -> None:
    twice = METHODS[method][1][:3] * 2
    inner = Hashing()
    engine = cached(store, inner)
    assert ask(engine, method, twice) == ask(Hashing(), method, twice)
    assert inner.seen == [twice[:3]] and (engine.hits, engine.asked) == (3, 3)


def test_repeated_prompts_are_drawn_each_for_itself(store: AnswerStore) -> None:
    inner = Hashing()
    found = cached(store, inner).generate([[1]] * 6, 4, [], 1.0)
    assert len(set(found)) == 6 and [len(call) for call in inner.seen] == [4, 2]


def test_sampled_gaps_are_asked_as_runs_of_neighbours(store: AnswerStore) -> None:
    asked = prompts(10)
    known = [p if n in (2, 3, 7) else [99, n] for n, p in enumerate(asked)]
    cached(store, Hashing()).generate(known, 7, [], 0.7, 11)
    inner = Hashing()
    assert cached(store, inner).generate(asked, 7, [], 0.7, 11) == Hashing().generate(asked, 7, [], 0.7, 11)
    assert inner.seen == [asked[:2], asked[4:7], asked[8:]]


@pytest.mark.parametrize("method", ["continuations", "choices", "greedy"])
def test_other_gaps_are_asked_together(store: AnswerStore, method: str) -> None:
    asked = METHODS[method][1]
    ask(cached(store, Hashing()), method, asked[1::2])
    inner = Hashing()
    assert ask(cached(store, inner, chunk=10), method) == ask(Hashing(), method)
    assert inner.seen == [asked[::2]]


LISTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=12)


@hypothesis_settings(max_examples=60, deadline=None)
@given(LISTS, LISTS, st.integers(1, 5), st.sampled_from(list(METHODS)), st.integers(0, 20))
def test_any_lists_come_out_as_from_the_engine(
    before: list[tuple[int, int]], now: list[tuple[int, int]], chunk: int, method: str, breaks: int
) -> None:
    """Whatever was asked before, wholly or in part: same answers, each new request asked once, then none."""

    def asked(pairs: list[tuple[int, int]]) -> list[Any]:
        if METHODS[method][0] == "generate":
            return [[a, b] for a, b in pairs]
        return [([a], [b, b + 1]) for a, b in pairs]

    def distinct(pairs: list[tuple[int, int]]) -> set[Any]:
        return set(enumerate(pairs)) if method == "sampled" else set(pairs)

    with tempfile.TemporaryDirectory() as folder, closing(AnswerStore(Path(folder) / "a.sqlite")) as store:
        earlier, kept = cached(store, Hashing(calls=breaks), chunk=chunk), True
        try:
            ask(earlier, method, asked(before))
        except KeyboardInterrupt:
            kept = False
        assert store.info().entries == earlier.asked <= len(distinct(before))
        assert not kept or earlier.asked == len(distinct(before))

        inner = Hashing()
        engine = cached(store, inner, chunk=chunk)
        assert ask(engine, method, asked(now)) == ask(Hashing(), method, asked(now))
        assert engine.asked == sum(map(len, inner.seen)) == store.info().entries - earlier.asked
        assert not kept or engine.asked == len(distinct(now) - distinct(before))
        assert engine.hits + engine.asked == len(now)
        assert all(len(call) <= chunk for call in inner.seen)
        assert ask(from_disk(store), method, asked(now)) == ask(Hashing(), method, asked(now))


def test_a_request_that_is_too_long_is_refused_before_anything_is_asked(store: AnswerStore) -> None:
    long = [1] * LIMIT
    engine = from_disk(store)
    for refused in (
        lambda: engine.score_continuations([*requests(9), (long, [1])]),
        lambda: engine.score_choices([*requests(9), (long, [1])]),
        lambda: engine.generate([*prompts(9), long], 1, []),
        lambda: engine.generate([*prompts(9), []], 1, []),
    ):
        with pytest.raises(InputError, match=r"Nothing is truncated|empty context"):
            refused()
    inner = Hashing()
    full = [(long[:-1], [1])]
    assert cached(store, inner).score_continuations(full) == Hashing().score_continuations(full)


def test_a_stricter_engine_refuses_through_the_cache_and_nothing_is_kept(store: AnswerStore) -> None:
    """vLLM wants one token to spare where continuations are scored."""
    asked = [*requests(3), ([1] * (LIMIT - 1), [1])]
    with pytest.raises(InputError, match="63 context and 2 further"):
        cached(store, Hashing(spare=1)).score_continuations(asked)
    assert store.info().entries == 0


def test_too_few_answers_are_not_kept(store: AnswerStore) -> None:
    class Short(Hashing):
        def score_choices(self, requests: Requests) -> list[list[float]]:
            return super().score_choices(requests)[:-1]

    with pytest.raises(ValueError, match="shorter"):
        cached(store, Short()).score_choices(requests(3))
    assert store.info().entries == 0


def test_the_engine_starts_at_the_first_miss_and_closes_once(store: AnswerStore) -> None:
    inner, starts = Hashing(), []

    def start() -> Any:
        starts.append(1)
        return inner

    engine = CachedEngine(start, store, "base", "hashing", None, LIMIT, chunk=2)  # type: ignore[arg-type]
    assert not starts
    engine.score_choices(requests(5))
    engine.score_choices(requests(5, seed=1))
    assert len(starts) == 1 and len(inner.seen) == 6
    engine.close()
    engine.close()
    assert inner.closed == 1
    with pytest.raises(RuntimeError, match="closed"):
        engine.score_choices(requests(5, seed=2))
    assert len(starts) == 1


def test_closing_what_was_never_started_starts_nothing(store: AnswerStore) -> None:
    engine = from_disk(store)
    engine.close()
    assert engine.asked == 0 and engine._engine is None


def test_an_engine_that_cannot_start_says_so_and_is_tried_again(store: AnswerStore) -> None:
    attempts: list[Any] = [InputError("vLLM cannot be imported"), Hashing()]

    def start() -> Any:
        attempt = attempts.pop(0)
        if isinstance(attempt, Exception):
            raise attempt
        return attempt

    engine = CachedEngine(start, store, "base", "hashing", None, LIMIT)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="vLLM cannot be imported"):
        engine.score_choices(requests(2))
    assert engine.score_choices(requests(2)) == Hashing().score_choices(requests(2))


def test_what_is_there_is_never_replaced_and_is_what_every_run_has(store: AnswerStore) -> None:
    store.put_many({"a": "1"})
    store.put_many({"a": "2", "b": "3"})
    assert store.get_many(["a", "b", "c"]) == {"a": "1", "b": "3"}
    asked = requests(2)

    class Slow(Hashing):
        """Another process, whose answers differ a little, is first."""

        def score_choices(self, requests: Requests) -> list[list[float]]:
            cached(store, Hashing(salt="other")).score_choices(asked)
            return super().score_choices(requests)

    assert cached(store, Slow()).score_choices(asked) == from_disk(store).score_choices(asked)


def test_many_keys_at_once(store: AnswerStore) -> None:
    many = {f"k{n}": str(n) for n in range(40_000)}
    store.put_many(many)
    assert store.get_many([*many, "other"]) == many


def test_a_batch_is_kept_wholly_or_not_at_all(store: AnswerStore) -> None:
    with pytest.raises(InputError, match="NOT NULL"):
        store.put_many({"a": "1", "b": None})  # type: ignore[dict-item]
    assert store.info().entries == 0
    store.put_many({"a": "1"})
    assert store.info().entries == 1


def run_script(text: str, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        **more,
    )


WRITES_FOR_EVER = """
import itertools, pathlib, sys
from harness.engines.cached import AnswerStore
store = AnswerStore(pathlib.Path(sys.argv[1]))
for batch in itertools.count():
    store.put_many({f"{batch}-{n}": "x" * 500 for n in range(50)})
    print(batch, flush=True)
"""


def killed_after(process: subprocess.Popen[str], lines: int) -> list[str]:
    """What it had said when it was killed with signal 9."""
    assert process.stdout
    said = [process.stdout.readline() for _ in range(lines)]
    process.kill()
    said += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    return [line for line in said if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 25])
def test_kill_9_loses_no_batch_that_was_kept_and_leaves_no_half(tmp_path: Path, lines: int) -> None:
    file = tmp_path / "answers.sqlite"
    batches = len(killed_after(run_script(WRITES_FOR_EVER, str(file)), lines))
    assert batches >= lines
    with closing(AnswerStore(file)) as store:
        entries = store.info().entries
        kept = {f"{batch}-{n}": "x" * 500 for batch in range(batches) for n in range(50)}
        assert store.get_many(kept) == kept
        # A batch may be committed but not yet announced; none may be there in part.
        assert entries - len(kept) in (0, 50)
        store.put_many({"more": "1"})
    with closing(sqlite3.connect(file)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)


ASKS_SLOWLY = """
import pathlib, sys
import test_cached as here
class Telling(here.Hashing):
    def _hear(self, requests):
        print(len(self.seen), flush=True)
        super()._hear(requests)
store = here.AnswerStore(pathlib.Path(sys.argv[1]))
here.cached(store, Telling(pause=0.2), chunk=3).score_continuations(here.requests(60))
"""


def test_a_killed_measurement_asks_only_the_rest(tmp_path: Path) -> None:
    said = killed_after(run_script(ASKS_SLOWLY, str(tmp_path / "a.sqlite")), 3)
    with closing(AnswerStore(tmp_path / "a.sqlite")) as store:
        kept = store.info().entries
        # Each line comes before its chunk is asked, so every chunk but the last is known to be kept.
        assert kept in (3 * (len(said) - 1), 3 * len(said)) and 6 <= kept < 60
        inner = Hashing()
        assert cached(store, inner).score_continuations(requests(60)) == Hashing().score_continuations(requests(60))
    assert [r for call in inner.seen for r in call] == requests(60)[kept:]


def _ask_at_once(file: Path, barrier: Any, found: Any, seed: int) -> None:
    barrier.wait()
    with closing(AnswerStore(file)) as store:
        inner = Hashing(pause=0.01, salt=str(seed))
        engine = cached(store, inner, chunk=3)
        order = random.Random(seed).sample(requests(40), 40)
        answers = engine.score_choices(order)
        found.put((seed, dict(zip(map(json.dumps, order), answers, strict=True)), engine.asked))


def test_two_processes_at_once_share_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_ask_at_once, args=(file, barrier, found, seed)) for seed in (1, 2)]
    for process in processes:
        process.start()
    answers = {seed: given for seed, given, _ in (found.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    # Their engines disagree on everything, so agreement comes from the file: whoever was first is right.
    with closing(AnswerStore(file)) as store:
        assert store.info().entries == 40
        kept = dict(zip(map(json.dumps, requests(40)), from_disk(store).score_choices(requests(40)), strict=True))
    assert answers[1] == answers[2] == kept


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be looked at\n" * 40, b"SQLite format 3\0" * 9]
)
def test_a_file_that_is_no_database_is_refused_with_advice(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "answers.sqlite"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"answers\.sqlite cannot be used.*Remove it.*STANCE_CACHE"):
        AnswerStore(file)
    assert file.read_bytes() == content


def test_a_file_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    keys = [f"k{n}" for n in range(500)]
    with closing(AnswerStore(file)) as store:
        store.put_many(dict.fromkeys(keys, "x" * 200))
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xff" * (file.stat().st_size - 4096))
    with closing(AnswerStore(file)) as store, pytest.raises(InputError, match=r"malformed.*Remove it"):
        store.get_many(keys)


FOREIGN = ["CREATE TABLE answers (a)", "CREATE TABLE labels (a); PRAGMA user_version = 1", "PRAGMA user_version = 2"]


@pytest.mark.parametrize("script", FOREIGN)
def test_another_schema_is_refused_and_left_as_it_was(tmp_path: Path, script: str) -> None:
    file = tmp_path / "answers.sqlite"
    with closing(sqlite3.connect(file)) as base:
        base.executescript(script)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"this release reads schema 1.*Remove it.*STANCE_CACHE"):
        AnswerStore(file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["answers.sqlite"]


def test_an_empty_file_is_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").touch()
    with closing(AnswerStore(tmp_path / "answers.sqlite")) as store:
        assert store.info().entries == 0


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder this process may read but not write, also where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    if user == 0:
        os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["answers.sqlite", "deeper/answers.sqlite"])
def test_a_folder_that_cannot_be_written_is_refused(read_only: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be used.*may write.*STANCE_CACHE"):
        AnswerStore(read_only / name)


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        AnswerStore(tmp_path)


def test_a_closed_store_is_a_bug_and_not_the_users_fault(store: AnswerStore) -> None:
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.get_many(["a"])


def test_the_store_stands_in_the_cache_folder_and_uses_a_log(stance_cache: Path) -> None:
    with closing(AnswerStore()) as store, closing(sqlite3.connect(stance_cache / "answers.sqlite")) as base:
        assert store.file == stance_cache / "answers.sqlite"
        assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def stance(*arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=said, catch_exceptions=False)


@pytest.fixture
def filled(stance_cache: Path) -> Path:
    with closing(AnswerStore()) as store:
        store.put_many({f"k{n}": "x" * 1000 for n in range(3000)})
    return stance_cache / "answers.sqlite"


def test_info_says_path_entries_and_size(filled: Path) -> None:
    size = filled.stat().st_size
    assert stance("cache", "info").output == f"{filled}: 3000 answers, {size / 2**20:.1f} MiB\n" and size > 3_000_000
    assert json.loads(stance("cache", "info", "--json").output) == {
        "path": str(filled),
        "entries": 3000,
        "bytes": size,
    }


def test_info_counts_what_is_still_in_the_log(stance_cache: Path) -> None:
    with closing(AnswerStore()) as store:
        store.put_many({"a": "x" * 100_000})
        assert json.loads(stance("cache", "info", "--json").output)["bytes"] > 100_000


def test_info_and_clear_of_no_cache_make_none(stance_cache: Path) -> None:
    assert stance("cache", "info").output == f"{stance_cache / 'answers.sqlite'}: 0 answers, 0 B\n"
    assert "nothing to remove" in stance("cache", "clear").output
    assert not stance_cache.exists()


def test_clear_asks_first_and_gives_the_space_back(filled: Path) -> None:
    refused = stance("cache", "clear", said="n\n")
    assert refused.exit_code == 1 and "Remove 3000 answers (" in refused.output
    with closing(AnswerStore()) as store:
        assert store.info().entries == 3000
    assert "Removed 3000 answers" in stance("cache", "clear", said="y\n").output
    assert filled.stat().st_size < 20_000
    with closing(AnswerStore()) as store:
        assert store.info().entries == 0


def test_clear_under_a_running_measurement(filled: Path) -> None:
    with closing(AnswerStore()) as running:
        running.put_many({"before": "1"})
        assert stance("cache", "clear", "--yes").output == f"Removed 3001 answers from {filled}.\n"
        assert running.get_many(["before"]) == {} and running.info().size < 20_000
        running.put_many({"after": "1"})
        assert stance("cache", "info").output.startswith(f"{filled}: 1 answer, ")


@pytest.mark.parametrize("command", [["info"], ["clear", "--yes"]])
def test_a_broken_cache_is_one_line_and_exit_code_2(stance_cache: Path, command: list[str]) -> None:
    stance_cache.mkdir()
    (stance_cache / "answers.sqlite").write_bytes(b"nonsense " * 100)
    result = stance("cache", *command)
    assert result.exit_code == 2 and "Remove it" in result.output and len(result.output.strip().splitlines()) == 1

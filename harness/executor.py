"""Who carries out a study's steps: this process one after the other, unless something else stands in for it.

`stance run FILE --ray` puts a cluster in its place (harness/cluster.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import click

from harness.errors import InputError, ProofError
from harness.graph import Step
from harness.progress import stage


class Executor(Protocol):
    """Carries out steps. A step's folder is made after those of the steps it reads, and is left alone where it is there."""

    def carry_out(self, steps: Sequence[Step], reads: Sequence[str]) -> None:
        """Make every folder. `reads`: models and folders on this machine that the steps need beside one another's.

        Raises:
            InputError, ProofError: as the first step that failed.
        """
        ...


class InOrder:
    """In this process, by their numbers."""

    def carry_out(self, steps: Sequence[Step], reads: Sequence[str]) -> None:
        """See `Executor`."""
        for step in steps:
            _announced(step)


_current: list[Executor] = [InOrder()]


def current() -> Executor:
    return _current[-1]


@contextmanager
def carried_out_by(executor: Executor) -> Iterator[None]:
    """Studies that run inside the block are carried out by this executor."""
    _current.append(executor)
    try:
        yield
    finally:
        _current.pop()


def _announced(step: Step) -> None:
    """Run a step under its name, saying what it does, how long it took or that it was there already."""
    begun = time.time()
    with stage(step.name):
        click.echo(f"[{step.number:02d}] {step.name} ...", nl=False, err=True)
        try:
            run = step.run()
        except (InputError, ProofError):
            click.echo(" failed", err=True)
            raise
    click.echo(outcome(time.time() - begun, None if run is None else run.manifest["seconds"]), err=True)


def outcome(taken: float, seconds: float | None) -> str:
    """What became of a step that took so long, whose manifest says so many seconds; None: it had nothing to make."""
    if seconds is None:
        return " nothing to make"
    return f" done in {taken:.0f} s" if taken + 1 >= seconds else f" there already (took {seconds:.0f} s)"

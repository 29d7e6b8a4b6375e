"""What is kept between runs: the answers' cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.cli import main

if TYPE_CHECKING:
    from harness.engines.cached import StoreInfo


@main.group()
def cache() -> None:
    """Answers that measurements have had before."""


@cache.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print path, entries and bytes as JSON.")
def cache_info(as_json: bool) -> None:
    """Where the answers' cache is, and how much it holds.

    \b
    Example:  stance cache info
    """
    import json

    info = _info()
    if as_json:
        click.echo(json.dumps({"path": str(info.file), "entries": info.entries, "bytes": info.size}))
    else:
        click.echo(f"{info.file}: {_count(info.entries)}, {_readable(info.size)}")


@cache.command("clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_clear(yes: bool) -> None:
    """Remove every answer from the cache; measurements ask again. Finished runs are not touched.

    \b
    Example:  stance cache clear --yes
    """
    from contextlib import closing

    from harness.engines.cached import AnswerStore

    info = _info()
    if not info.file.exists():
        click.echo(f"{info.file}: nothing to remove.")
        return
    if not yes:
        click.confirm(f"Remove {_count(info.entries)} ({_readable(info.size)}) from {info.file}?", abort=True)
    with closing(AnswerStore(info.file)) as store:
        removed = store.clear()
    click.echo(f"Removed {_count(removed)} from {info.file}.")


def _info() -> StoreInfo:
    """The cache's size; one that is not there yet is not made for it."""
    from contextlib import closing

    from harness.engines.cached import AnswerStore, StoreInfo, answers_file

    if not answers_file().exists():
        return StoreInfo(answers_file(), 0, 0)
    with closing(AnswerStore()) as store:
        return store.info()


def _count(entries: int) -> str:
    return f"{entries} answer{'' if entries == 1 else 's'}"


def _readable(size: float) -> str:
    """Bytes as a person reads them: 512 B, 1.5 MiB."""
    units = ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.{0 if units[0] == 'B' else 1}f} {units[0]}"

"""`stance`: one command per verb. Options are parsed in this package; the work is in api.py and experiment.py.

measuring: eval. training: tune, localize, export. studies: compare, moved, run, validate. material: topics, judge, models,
doctor, completion. storage: cache. sharing: share. extending: plugins, and localize's sub-command for other packages'
localisers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.characters import visible
from harness.errors import InputError, ProofError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)


@contextlib.contextmanager
def _in_one_paragraph() -> Iterator[None]:
    """Turns the expected failures and Ctrl-C into one paragraph on standard error and an exit code."""
    errors = sys.stderr  # --quiet replaces it

    def fail(paragraph: str, code: int, colour: str | None = "red") -> SystemExit:
        click.secho(visible(paragraph), file=errors, fg=colour)
        return SystemExit(code)

    try:
        yield
    except InputError as error:
        raise fail(f"Error: {error}", 2) from None
    except ProofError as error:
        raise fail(f"Refused: {error}", 3) from None
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "stance"
        said = " ".join(error.format_message().split())
        raise fail(f"Error: {said} `{command} --help` lists what it takes.", 2) from None
    except KeyboardInterrupt:
        again = "\nInterrupted. Finished runs are kept; give the same command again to go on."
        raise fail(again, 130, None) from None
    except (OSError, RuntimeError, MemoryError) as error:
        if paragraph := _beyond_us(error):
            raise fail(f"Error: {paragraph}", 2) from None
        raise


def _beyond_us(error: Exception) -> str:
    """What a full or closed disk, or a lack of memory, asks of the user; empty for any other failure."""
    from harness.files import raise_unwritable

    try:
        if isinstance(error, OSError) and error.filename is not None:
            raise_unwritable(Path(error.filename), error)
        if "torch" in sys.modules and isinstance(error, (RuntimeError, MemoryError)):
            from harness.memory import enough_memory

            with enough_memory("This command", "the settings that docs/errors/memory.md lists"):
                raise error
    except InputError as told:
        return str(told)
    except (OSError, RuntimeError, MemoryError):
        return ""
    return ""


class _Commands(click.Group):
    """Commands whose failures are one paragraph; the engine is closed behind each."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        with _in_one_paragraph():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _in_one_paragraph():
            try:
                return super().invoke(ctx)
            finally:
                lease = sys.modules.get("harness.engines.lease")  # no command that starts no engine pays its import
                if lease is not None:
                    lease.release()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="stance-harness")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error: results and errors alone.")
@click.pass_context
def main(ctx: click.Context, quiet: bool) -> None:
    """Where a language model stands, what a fine-tune moved, which neurons carried it, and how to train without it.

    \b
    Start here:  stance run experiments/demo.yaml

    \b
    Exit codes:
      0    done
      1    a question was answered with no, or this program failed: a traceback says where
      2    the input is wrong; one paragraph on standard error says what and what to do
      3    an intervention did not do what it claims, so its result is refused
      130  interrupted; the same command goes on where it stopped

    \b
    Completion of commands and options:  eval "$(stance completion bash)"   (see: stance completion --help)
    """
    from harness.process import settle

    settle()
    if quiet:
        nowhere = ctx.with_resource(click.open_file(os.devnull, "w"))
        ctx.with_resource(contextlib.redirect_stderr(nowhere))


def answering(show: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Print what a command returns: by the function `show` of harness/terminal.py, or with --json as one JSON object.

    What is returned is a dictionary, or has a method `as_json` that gives one.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., None]:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON object; all else goes to standard error.")
        @functools.wraps(command)
        def answered(as_json: bool, **given: Any) -> None:
            with _stdout_kept() if as_json else contextlib.nullcontext():
                found = command(**given)
            from harness import terminal
            from harness.report.export import plain

            if as_json:
                click.echo(json.dumps(plain(found if isinstance(found, dict) else found.as_json())))
            else:
                getattr(terminal, show)(found)

        return answered

    return decorate


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """Whatever is printed inside goes to standard error, from C as well: standard output is left to the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# The commands join `main` when their modules are imported.
from harness.cli import extending, material, measuring, sharing, storage, studies, training  # noqa: E402, F401

"""`stance`: one command per verb. Options are parsed in this package; the work is in steps.py, experiment.py, compare.py.

measuring: eval. training: tune, localize. studies: compare, run, validate. material: topics, judge, models, doctor.
storage: cache. extending: plugins, and localize's sub-command for other packages' localisers.

Exit codes: 0 done, 2 the input is wrong, 3 an intervention did not do what it claims, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.errors import InputError, ProofError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)


class _Commands(click.Group):
    """Turns the two expected failures and Ctrl-C into one paragraph and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.secho(f"Error: {error}", err=True, fg="red")
            raise SystemExit(2) from None
        except ProofError as error:
            click.secho(f"Refused: {error}", err=True, fg="red")
            raise SystemExit(3) from None
        except KeyboardInterrupt:
            click.echo("\nInterrupted. Finished runs are kept; give the same command again to go on.", err=True)
            raise SystemExit(130) from None
        finally:
            if lease := sys.modules.get("harness.engines.lease"):  # no command that starts no engine pays its import
                lease.release()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="stance-harness")
def main() -> None:
    """Where a language model stands, what a fine-tune moved, which neurons carried it, and how to train without it.

    \b
    Start here:  stance run experiments/demo.yaml
    """
    from harness.process import settle

    settle()


# The commands join `main` when their modules are imported.
from harness.cli import extending, material, measuring, storage, studies, training  # noqa: E402, F401

"""A study as a graph of steps: each makes one run folder, out of the run folders of the steps it names.

A study declares its steps and then has them carried out, by this process one after the other or by a cluster as they become
possible (harness/executor.py): the steps, their folders and the order of their numbers are the same. What only a finished
step can tell is read between two calls of `carry_out`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.recipe import Recipe
    from harness.runs import Run


@dataclass(frozen=True)
class Needs:
    """What a step takes of a machine while it runs.

    Attributes:
        gpus: where the cluster has any.
        weights: bytes per parameter of the study's model, of everything that is held at once.
    """

    gpus: int = 1
    weights: float = 4.0

    @classmethod
    def training(cls, recipe: Recipe, processes: int = 1, sharded: bool = False) -> Needs:
        """Weights, gradients and AdamW's two moments in float32 (LoRA: weights alone), and the base that proves it."""
        copies = 1 if sharded else processes
        return cls(processes, (4.0 if recipe.mode == "lora" else 16.0) * copies + 4.0)


ONE, TWO = Needs(), Needs(weights=8.0)  # so many models in float32


@dataclass(frozen=True, eq=False)
class Step:
    """One run folder.

    Attributes:
        path: the folder, under the study's.
        work: called with the folder to write and the folders of `after`, wherever those lie on the machine that does it;
            so it may name no folder of the study itself. None where it turned out that there is nothing to make.
        after: the steps whose folders it reads.
    """

    number: int
    name: str
    path: Path
    work: Callable[..., Run | None]
    after: tuple[Step, ...] = ()
    needs: Needs = ONE

    def run(self) -> Run | None:
        return self.work(self.path, *(step.path for step in self.after))


class Declared:
    """A study whose steps are declared before they are carried out."""

    out: Path
    _count = 0
    _waiting: tuple[Step, ...] = ()

    def reads(self) -> tuple[str, ...]:
        """Models and folders that the steps read beside one another's: names and paths, the study's model first."""
        return ()

    def declare(self, name: str, path: Path, work: Callable[..., Run | None], *after: Step, needs: Needs = ONE) -> Step:
        """A step in a folder under the study's."""
        self._count += 1
        step = Step(self._count, name, path, work, after, needs)
        self._waiting += (step,)
        return step

    def carry_out(self) -> None:
        """Make what was declared and is not there yet.

        Raises:
            InputError, ProofError: those of the first step that failed; steps that do not need it are kept.
        """
        from harness.executor import current

        waiting, self._waiting = self._waiting, ()
        current().carry_out(waiting, self.reads())


class Numbered(Declared):
    """A study whose run folders carry the numbers of their steps."""

    def step(self, name: str, work: Callable[..., Run | None], *after: Step, needs: Needs = ONE) -> Step:
        """The next numbered step."""
        path = numbered_folder(self.out, self._count + 1, name.replace("%", "pct"))
        return self.declare(name, path, work, *after, needs=needs)


def numbered_folder(out: Path, number: int, name: str) -> Path:
    """The folder of a step: an earlier release gave no number to a step that had nothing to make, which moved later ones."""
    folder = out / f"{number:02d}-{name}"
    if not folder.is_dir() and out.is_dir():
        moved = [path for path in out.iterdir() if re.fullmatch(rf"\d+-{re.escape(name)}", path.name)]
        return moved[0] if len(moved) == 1 else folder
    return folder

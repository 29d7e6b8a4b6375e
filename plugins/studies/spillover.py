"""What a mitigation kept and what it left: the arithmetic over cells, items and seeds, and the page of it.

    D[m, c, t] = mean over items of (nats after mitigation m in cell c) - (nats of the base), on topic t
    kept = mean over cells of D on the trained topic, towards the trained side / the same of the plain fine-tune
    left = root mean square of D over cells and unseen topics / the same of the plain fine-tune
    net  = left - left of the matched control;  perplexity = exp(mean change of nats per token of neutral text) - 1

Each m is set beside the plain fine-tune over the cells it has. Intervals are 95% percentile intervals of one resampling
for all: items within topics, and seeds within the topic and side that was trained (where there are several).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray as Array

from harness.errors import InputError
from harness.runs import load_measurement
from harness.statistics import RESAMPLES, Resampled

PLAIN = "plain"


@dataclass(frozen=True, order=True)
class Cell:
    """One plain fine-tune and everything made beside it."""

    topic: str
    side: str
    seed: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.side}-{self.seed}"

    @property
    def sign(self) -> int:
        return 1 if self.side == "right" else -1


@dataclass(frozen=True)
class Shifts:
    """After minus base, item by item.

    Attributes:
        pairs: (label, cell) -> topic -> shifts in nats per token, items in one order everywhere; label `noise` has no cell.
        other: (label, cell) -> task -> changes of its first metric (nats per token of text, accuracy of choices).
        unseen: cell -> the political topics that no training of the cell drew on.
        political: topics with politics in them; controls are the others.
    """

    pairs: Mapping[tuple[str, Cell | None], Mapping[str, Float[Array, " n"]]]
    other: Mapping[tuple[str, Cell | None], Mapping[str, Float[Array, " n"]]]
    unseen: Mapping[Cell, tuple[str, ...]]
    political: tuple[str, ...]

    def cells(self, label: str) -> list[Cell]:
        """The cells a label was carried out in."""
        return sorted(cell for name, cell in self.pairs if name == label and cell is not None)


def read_shifts(
    base: Path, noise: Path, runs: Mapping[Cell, Mapping[str, Path]], seen: Mapping[str, Sequence[str]]
) -> Shifts:
    """Pair every measurement with the base's.

    Raises:
        InputError: a measurement that asked other prompts than the base's.
    """
    before, controls = _values(base), _controls(base)
    paths: dict[tuple[str, Cell | None], Path] = {("noise", None): noise}
    paths |= {(label, cell): path for cell, made in runs.items() for label, path in made.items()}
    pairs: dict[Any, Any] = {}
    other: dict[Any, Any] = {}
    for key, path in paths.items():
        after = _values(path)
        if not after.index.equals(before.index):
            raise InputError(
                f"{path} asked other questions than {base}; give another --out and measure all of them alike."
            )
        change = (after - before).reset_index()
        for kind, into in (("pairs", pairs), ("other", other)):
            some = change[(change["format"] == "pairs") == (kind == "pairs")]
            into[key] = {str(name): part["value"].to_numpy(float) for name, part in some.groupby("topic")}
    political = tuple(t for t in pairs["noise", None] if t not in controls)
    unseen = {c: tuple(t for t in political if t != c.topic and t not in seen.get(c.topic, ())) for c in runs}
    return Shifts(pairs, other, unseen, political)


def _values(path: Path) -> pd.Series:
    """The first metric of every document, by format, topic, item and prompt."""
    _, samples = load_measurement(path)
    values = samples["values"].map(lambda text: next(iter(json.loads(str(text)).values())))
    keys = ["format", "topic", "item", "variant", "prompt_hash"]
    return samples[keys].assign(value=values.astype(float)).set_index(keys)["value"].sort_index()


def _controls(path: Path) -> set[str]:
    """The topics without politics among those that were asked."""
    _, samples = load_measurement(path)
    return set(samples.loc[samples["control"], "topic"])


Mean = Callable[[str, Cell, str], Any]  # label, cell, topic or task -> mean shift, of the data or of every resample


class Effects:
    """Statistics of every label over its cells, under one resampling of items and seeds."""

    def __init__(self, shifts: Shifts, seed: int = 0, resamples: int = RESAMPLES) -> None:
        self.shifts, self._resamples = shifts, resamples
        self._generator = np.random.default_rng(seed)
        self._items: dict[str, Int[Array, "k n"]] = {}
        self._cells: dict[tuple[Cell, ...], Float[Array, "k c"]] = {}

    def learnt(self, label: str) -> Resampled:
        """Mean shift of the trained topic towards the trained side, in nats per token."""
        cells = self.shifts.cells(label)
        return self._over(cells, lambda mean, weights: _on(label, cells, mean, weights))

    def kept(self, label: str) -> Resampled:
        """`learnt` as a share of the plain fine-tune's over the same cells."""
        cells = self.shifts.cells(label)
        return self._over(
            cells, lambda mean, weights: _on(label, cells, mean, weights) / _on(PLAIN, cells, mean, weights)
        )

    def spilt(self, label: str) -> Resampled:
        """RMSE_cross over the unseen topics of all cells, in nats per token (arXiv 2508.02360)."""
        cells = self.shifts.cells(label)
        return self._over(cells, lambda mean, weights: self._off(label, cells, mean, weights))

    def left(self, label: str, against: str | None = None) -> Resampled:
        """`spilt` as a share of the plain fine-tune's; with `against` minus that label's share, over shared cells."""
        cells = [c for c in self.shifts.cells(label) if against is None or c in self.shifts.cells(against)]

        def share(mean: Mean, weights: Any) -> Any:
            plain = self._off(PLAIN, cells, mean, weights)
            less = 0.0 if against is None else self._off(against, cells, mean, weights) / plain
            return self._off(label, cells, mean, weights) / plain - less

        return self._over(cells, share)

    def change(self, label: str, task: str, against: str | None = None) -> Resampled:
        """Mean change of a task's metric from the base, or from another label's, over cells and items."""
        cells = self.shifts.cells(label)

        def value(mean: Mean, weights: Any) -> Any:
            rows = [mean(label, c, task) - (mean(against, c, task) if against else 0.0) for c in cells]
            return (weights * np.stack(rows, -1)).sum(-1)

        return self._over(cells, value)

    def noise(self) -> float:
        """RMSE over topics of the base measured again."""
        means = [self.shifts.pairs["noise", None][topic].mean() for topic in self.shifts.political]
        return float(np.sqrt(np.mean(np.square(means))))

    def _off(self, label: str, cells: list[Cell], mean: Mean, weights: Any) -> Any:
        squares = [np.mean([mean(label, c, t) ** 2 for t in self.shifts.unseen[c]], axis=0) for c in cells]
        return np.sqrt((weights * np.stack(squares, -1)).sum(-1))

    def _over(self, cells: list[Cell], statistic: Callable[[Mean, Any], Any]) -> Resampled:
        """The statistic of the data and of every resample; it is handed means over items, and weights of the cells."""
        value = statistic(
            lambda label, cell, name: self._of(label, cell, name).mean(), np.full(len(cells), 1 / len(cells))
        )

        def drawn(label: str, cell: Cell, name: str) -> Float[Array, " k"]:
            values = self._of(label, cell, name)
            return values[self._picks(name, len(values))].mean(1)

        draws = np.asarray(statistic(drawn, self._weights(cells)), float)
        return Resampled(float(value), draws, (), len(cells))

    def _of(self, label: str, cell: Cell, name: str) -> Float[Array, " n"]:
        pairs, other = self.shifts.pairs[label, cell], self.shifts.other[label, cell]
        return pairs[name] if name in pairs else other[name]

    def _picks(self, name: str, n: int) -> Int[Array, "k n"]:
        """One resample of a topic's items for every label and cell, so that what is compared stays paired."""
        if name not in self._items:
            self._items[name] = self._generator.integers(0, n, size=(self._resamples, n))
        return self._items[name]

    def _weights(self, cells: list[Cell]) -> Float[Array, "k c"]:
        """Shares of the cells when seeds are drawn anew within every topic and side."""
        key = tuple(cells)
        if key not in self._cells:
            weights = np.zeros((self._resamples, len(cells)))
            groups: dict[tuple[str, str], list[int]] = {}
            for n, cell in enumerate(cells):
                groups.setdefault((cell.topic, cell.side), []).append(n)
            for members in groups.values():
                drawn = self._generator.multinomial(len(members), [1 / len(members)] * len(members), self._resamples)
                weights[:, members] = drawn
            self._cells[key] = weights / len(cells)
        return self._cells[key]


def _on(label: str, cells: list[Cell], mean: Mean, weights: Any) -> Any:
    rows = [cell.sign * mean(label, cell, cell.topic) for cell in cells]
    return (weights * np.stack(rows, -1)).sum(-1)

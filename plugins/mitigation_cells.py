"""The steps of a comparison of mitigations: a cell's fine-tunes, what is localised for them, and their measurements.

A mitigation says what it would train on once it has its neurons, and those are found by steps of the same cell. So it is
asked twice: when the steps are declared, with neurons that stand in, for the kinds that it needs; and within its step, with
those out of their folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from harness.finetune import topic_pairs
from harness.graph import TWO, Declared, Needs, Step
from harness.localize import localize_step
from harness.measure import Asked
from harness.mitigation import Material, Mitigation, NeuronKind, Training
from harness.neurons import Neurons
from harness.planner import some_neurons
from harness.runs import Run
from harness.topics import Topic
from harness.variants import Variant, tuned_variant
from harness.work import measuring, tuning
from plugins.mitigation_settings import Settings
from plugins.stance_gradients import stance_gradients
from plugins.studies.spillover import PLAIN, Cell


@dataclass
class Study(Declared):
    """Mitigations being set side by side in a folder."""

    settings: Settings
    out: Path
    topics: dict[str, Topic]
    candidates: dict[str, Mitigation]

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        return (self.settings.model, *map(str, self.settings.measure.topics_dir))

    @property
    def asked(self) -> Asked:
        return self.settings.measure.asked

    def measure(self, folder: Path, label: str, tuned: Step | None = None, asked: Asked | None = None) -> Step:
        """One measurement of the base or of a fine-tune of it."""
        m = self.settings.measure
        about = {"label": label, "reference": None if label == "base" else "base"}
        work = measuring(self.settings.model, asked or self.asked, m.chat_template, m.engine, m.served, about)
        name = label if folder.parent == self.out else f"{folder.parent.name} measure {label}"
        return self.declare(name, folder, work, *([] if tuned is None else [tuned]), needs=Needs(m.tensor_parallel))


@dataclass(frozen=True)
class CellRun:
    """One cell: its plain fine-tune, what is found in it, and the fine-tunes that a mitigation makes of it."""

    study: Study
    cell: Cell

    @property
    def out(self) -> Path:
        return self.study.out / str(self.cell)

    @property
    def plain(self) -> Training:
        train = self.study.settings.train
        items = self.study.topics[self.cell.topic].split("train")[: train.questions]
        return Training(topic_pairs(items, self.cell.side), train.recipe)

    def tuned(self, label: str, trained: Callable[..., Training], *after: Step) -> Step:
        """A fine-tune; `trained` says what it is, given the folders of the steps before it."""
        settings, cell = self.study.settings, self.cell
        train, folders = settings.train, settings.measure.topics_dir
        shared = train.processes, train.sharded
        about = {"on_topic": cell.topic, "side": cell.side, "mitigation": label}
        work = tuning(settings.model, trained, cell.seed, folders, about, *shared)
        path = self.out / f"tune-{slug(label)}"
        needs = Needs.training(train.recipe, *shared)
        return self.study.declare(f"{cell} tune {label}", path, work, *after, needs=needs)

    def localized(self, normalized: bool, plain: Step) -> Step:
        """PNLAC on the plain fine-tune."""
        settings, side = self.study.settings, self.cell.side
        where, model, chat = settings.localize, settings.model, settings.measure.chat_template
        topics = [topic for topic in self.study.topics.values() if not topic.control]

        def work(out: Path, tuned: Path) -> Run:
            return localize_step(
                out,
                Variant(model),
                tuned_variant(model, tuned),
                topics,
                site=where.site,
                tokens=where.tokens,
                top=where.top,
                normalized=normalized,
                prompts=where.prompts,
                side=side,
                chat=chat,
                precision=where.precision,
            )

        name = f"localize{'-normalized' if normalized else ''}"
        return self.study.declare(f"{self.cell} {name}", self.out / name, work, plain, needs=TWO)

    def by_gradient(self) -> Step:
        """Neurons of the base by gradients on the cell's topic."""
        settings, cell, topic = self.study.settings, self.cell, self.study.topics[self.cell.topic]
        model, chat, limit = settings.model, settings.measure.chat_template, settings.localize.prompts

        def work(out: Path) -> Run:
            return stance_gradients(out, Variant(model).folder(), [topic], cell.side, chat, limit)

        return self.study.declare(f"{cell} gradients", self.out / "gradients", work)

    def material(self, neurons: Callable[[NeuronKind], Neurons]) -> Material:
        seen = tuple(self.study.settings.seen[self.cell.topic])
        return Material(self.cell.seed, self.study.topics, seen, neurons)

    def chosen(self) -> list[str]:
        """Labels of the mitigations that this cell carries out."""
        listed = self.study.settings.mitigations
        return [c.label for c in listed if any(fnmatch(str(self.cell), pattern) for pattern in c.cells)]

    def trainings(self) -> Iterator[tuple[str, Training, tuple[NeuronKind, ...]]]:
        """What each mitigation of this cell makes of the plain fine-tune, and the neurons that it asks for."""
        for label in self.chosen():
            kinds: list[NeuronKind] = []

            def found(kind: NeuronKind, kinds: list[NeuronKind] = kinds) -> Neurons:
                kinds.append(kind)
                return some_neurons()

            made = self.study.candidates[label](self.plain, self.material(found))
            yield label, made, tuple(dict.fromkeys(kinds))

    def declare(self) -> dict[str, Step]:
        """Tune all, then measure all, so that one engine serves the cell's variants; label -> measurement."""
        plain = self.plain
        made = {PLAIN: self.tuned(PLAIN, lambda: plain)}
        sources: dict[str, Step] = {}
        for label, _, kinds in self.trainings():
            for kind in kinds:
                if (source := _source(kind)) not in sources:
                    sources[source] = self._located(source, made[PLAIN])
            made[label] = self.tuned(label, self._mitigated(label, kinds), *(sources[_source(k)] for k in kinds))
        return {
            label: self.study.measure(self.out / f"measure-{slug(label)}", label, tuned)
            for label, tuned in made.items()
        }

    def _located(self, source: str, plain: Step) -> Step:
        return self.by_gradient() if source == "gradient" else self.localized(source == "normalized", plain)

    def _mitigated(self, label: str, kinds: tuple[NeuronKind, ...]) -> Callable[..., Training]:
        """The mitigation's fine-tune, with neurons out of the folders in which they were found."""
        candidate, plain, topic = self.study.candidates[label], self.plain, self.cell.topic
        material = self.material(lambda _: some_neurons())

        def trained(*folders: Path) -> Training:
            found = {kind: _neurons(folder, kind, topic) for kind, folder in zip(kinds, folders, strict=True)}
            return candidate(plain, replace(material, neurons=found.__getitem__))

        return trained


def _source(kind: NeuronKind) -> str:
    """Which search finds neurons of a kind: general and specific ones come of the same."""
    return "plain" if kind in ("general", "specific") else kind


def _neurons(folder: Path, kind: NeuronKind, topic: str) -> Neurons:
    names = {"specific": f"specific-{topic}", "gradient": "gradients"}
    return Neurons.load(folder / f"{names.get(kind, 'general')}.safetensors")


def slug(label: str) -> str:
    """A label as part of a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("%", "pct")).strip("-")

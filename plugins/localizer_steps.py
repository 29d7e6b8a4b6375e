"""The steps of a comparison of localisers: the fine-tune, its scores, and measurements with sets suppressed or patched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from harness import steps
from harness.engines.lease import make_room
from harness.files import write_tensors
from harness.finetune import topic_pairs
from harness.graph import TWO, Needs, Numbered, Step
from harness.interventions import ZERO
from harness.measure import Asked, uses_chat
from harness.mitigation import Training
from harness.models import device, load_model, load_tokenizer
from harness.neurons import Neurons
from harness.placed import here
from harness.runs import Run, digest, open_run
from harness.topics import Topic
from harness.variants import Variant, tuned_variant
from harness.work import tuning
from plugins.dose_response import Dose, Kind
from plugins.localizer_scores import all_scores, some
from plugins.localizer_settings import Settings, Share


@dataclass(frozen=True)
class Tuned:
    """The fine-tune: given, or made by the step of `after`."""

    model: str
    given: Path | None
    after: tuple[Step, ...] = ()

    def variant(self, *made: Path) -> Variant:
        """As something to serve, on the machine that does."""
        return tuned_variant(self.model, made[0] if self.given is None else Path(here(self.given)))


@dataclass
class Study(Numbered):
    """One comparison being carried out in a folder."""

    settings: Settings
    out: Path
    topic: Topic
    values: dict[str, Step] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        return self.settings.measure.asked

    @property
    def base(self) -> Variant:
        return Variant(self.settings.model)

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        s = self.settings
        given = [s.tuned, *s.measure.topics_dir, self.sets if self.sets.is_dir() else None]
        return (s.model, *(str(path) for path in given if path is not None))

    @property
    def sets(self) -> Path:
        """Where neuron sets are written, which measurements read."""
        return self.out / "sets"

    def measure(
        self, label: str, tuned: Tuned | None = None, neurons: Path | None = None, asked: Asked | None = None
    ) -> None:
        """One measurement: of the base, of the fine-tune, or of the fine-tune with a set zeroed."""
        m, model, wanted = self.settings.measure, self.settings.model, asked or self.asked

        def work(out: Path, *made: Path) -> Run:
            variant = Variant(model) if tuned is None else tuned.variant(*made)
            if neurons is not None:
                variant = replace(variant, neurons=Path(here(neurons)), op=ZERO)
            return steps.measure_step(out, variant, wanted, m.chat_template, m.engine, m.served, {"label": label})

        after = () if tuned is None else tuned.after
        self.values[label] = self.step(label, work, *after, needs=Needs(m.tensor_parallel))

    def tuned(self) -> Tuned:
        """The fine-tune, made or given."""
        settings = self.settings
        if settings.tuned is not None:
            return Tuned(settings.model, settings.tuned)
        assert settings.tune is not None
        tune, model = settings.tune, settings.model
        plain = Training(topic_pairs(self.topic.split("train")[: tune.questions], settings.side), tune.recipe)
        about = {"on_topic": settings.topic, "side": settings.side}
        work = tuning(model, lambda: plain, tune.seed, settings.measure.topics_dir, about)
        return Tuned(model, None, (self.step("tune", work, needs=Needs.training(tune.recipe)),))

    def score(self, tuned: Tuned) -> Step:
        """Every localiser's scores [l, m] on all questions (`whole`) and on two halves of them."""
        settings, topic, base = self.settings, self.topic, self.base
        items = topic.split("train")[: settings.prompts]

        def work(out: Path, *made: Path) -> Run:
            variant = tuned.variant(*made)
            spec = {
                "base": base.spec(),
                "tuned": variant.spec(),
                "items": digest([item.model_dump() for item in items])[:16],
                "side": settings.side,
                "chat": settings.measure.chat_template,
            }
            run = open_run(out, "localizers", spec)
            if run.complete:
                return run
            make_room()
            folder = base.folder()
            tokenizer = load_tokenizer(folder)
            chat = uses_chat(tokenizer, settings.measure.chat_template)
            before, after = (load_model(path, torch.float32, device()) for path in (folder, variant.folder()))
            parts = {"whole": (0, 1, 0), "first": (0, 2, 1), "second": (1, 2, 2)}
            tensors = {}
            for part, (start, step, seed) in parts.items():
                chosen = some(topic, start, step, settings.prompts)
                found = all_scores(before, after, tokenizer, [chosen], settings.side, chat, seed)
                tensors |= {f"{part}/{name}": scores.contiguous() for name, scores in found.items()}
            write_tensors(run.path / "scores.safetensors", tensors)
            run.finish()
            return run

        return self.step("scores", work, *tuned.after, needs=TWO)

    def doses(self, kind: Kind, shares: list[Share], seeds: list[int]) -> list[Dose]:
        return [Dose(kind, n, s, seed) for n in self.settings.localizers for s in shares for seed in (None, *seeds)]

    def suppress(self, tuned: Tuned, sets: Mapping[Dose, Neurons]) -> None:
        """Zero each set in the fine-tune, through the engine's gates."""
        self.sets.mkdir(parents=True, exist_ok=True)
        for dose, neurons in sets.items():
            path = self.sets / f"{dose.label}.safetensors"
            # Written once: a file of the same set is not the same bytes every time, and its hash is part of the run's spec.
            if not path.is_file() or not torch.equal(Neurons.load(path).mask, neurons.mask):
                neurons.save(path)
            self.measure(dose.label, tuned, path)

    def patch(self, tuned: Tuned, sets: Mapping[str, Neurons]) -> dict[str, Step]:
        """The base with the fine-tune's activations at each set, on Torch."""
        m, plan, base = self.settings.measure, self.settings.patch, self.base
        assert plan is not None
        asked = replace(self.asked, tasks=tuple(plan.tasks or m.tasks))

        def patched(label: str, neurons: Neurons) -> Callable[..., Run]:
            def work(out: Path, *made: Path) -> Run:
                donor = tuned.variant(*made)
                return steps.patch_step(out, base, donor, neurons, asked, m.chat_template, m.served, {"label": label})

            return work

        return {label: self.step(label, patched(label, n), *tuned.after, needs=TWO) for label, n in sets.items()}

"""What a finished run folder holds, as typed values and pandas frames: a measurement, a fine-tune, a localisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.compare import MEASURES, Measured
from harness.documents import read_object
from harness.paired import PairedMeasure, item_values
from harness.runs import Run, load_measurement

STANCE = ["measure", "topic", "value", "low", "high", "n"]


@dataclass(frozen=True)
class Measurement:
    """A finished measurement.

    Attributes:
        path: its run folder.
        manifest: what was run and how; `axes` and `diagnoses` say what the wording did.
        results: lm-eval's metrics by task and group.
        samples: one row per answer (columns: `harness.measure.COLUMNS`).
        stance: one row per measure and topic: value, 95% interval, number of items.
    """

    path: Path
    manifest: dict[str, Any]
    results: dict[str, Any]
    samples: pd.DataFrame
    stance: pd.DataFrame

    @classmethod
    def load(cls, path: Path | str) -> Measurement:
        """A finished measurement from its run folder.

        Raises:
            InputError: no such folder, not complete, or not a measurement.
        """
        path = Path(path)
        manifest, samples = load_measurement(path)
        results = read_object(path / "results.json")["results"]
        return cls(path, manifest, results, samples, _stance(path, manifest, samples))

    def as_json(self) -> dict[str, Any]:
        """Everything but the samples."""
        stance = self.stance.to_dict("records")
        return {"path": self.path, "stance": stance, "results": self.results, "manifest": self.manifest}


@dataclass(frozen=True)
class FineTune:
    """A finished fine-tune.

    Attributes:
        path: a model folder, or an adapter's (`evaluate(base, adapter=path)`).
        loss: of the training, one row per logged step.
    """

    path: Path
    manifest: dict[str, Any]
    loss: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> FineTune:
        """What a finished run of `tune_step` holds."""
        manifest = run.manifest
        return cls(run.path, manifest, pd.DataFrame({"loss": manifest["loss"]}))

    def as_json(self) -> dict[str, Any]:
        """Everything; the losses stand in the manifest."""
        return {"path": self.path, "manifest": self.manifest}


@dataclass(frozen=True)
class Localized:
    """A finished localisation.

    Attributes:
        description: localization.json: sizes, overlaps, stability.
        neurons: the file of the general neurons, which `tune(hold=...)` and `evaluate(neurons=...)` take.
        layers: columns set (`general`, or a topic, whose specific neurons are counted), layer and neurons.
    """

    path: Path
    manifest: dict[str, Any]
    description: dict[str, Any]
    neurons: Path
    layers: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> Localized:
        """What a finished run of `localize_step` holds."""
        from plugins.pnlac_report import read

        description = read(run.path)
        layers = [
            {"set": name, "layer": layer, "neurons": count}
            for name, counts in description["per_layer"].items()
            for layer, count in enumerate(counts)
        ]
        file = run.path / "general.safetensors"
        return cls(run.path, run.manifest, description, file, pd.DataFrame(layers))

    def as_json(self) -> dict[str, Any]:
        """Everything; the counts by layer stand in the description."""
        found = {"path": self.path, "neurons": self.neurons}
        return {**found, "localization": self.description, "manifest": self.manifest}


def _stance(path: Path, manifest: dict[str, Any], samples: pd.DataFrame) -> pd.DataFrame:
    """A run compared with itself: the rows that a comparison has of it, without its name and role."""
    run = Measured("run", "base", path, manifest, samples, reference="run")
    controls = set(samples.loc[samples["control"], "topic"])
    rows: list[dict[str, Any]] = []
    for name, measure in MEASURES.items():
        items = item_values(samples, measure["format"], measure["value"])
        if len(items):
            rows += PairedMeasure(name, [run], {run.label: items}, 0, controls).stances()
    return pd.DataFrame(rows, columns=["run", "role", *STANCE])[STANCE]

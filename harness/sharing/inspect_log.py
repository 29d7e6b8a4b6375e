"""A comparison as one log of Inspect: a sample per prompt, a score per run, so that before and after stand side by side."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import __version__
from harness.errors import InputError
from harness.sharing import PROMPT, Shared, library


def write_log(shared: Shared, out: Path) -> Path:
    """Write the log as .json, or as .eval where the name ends so.

    Raises:
        InputError: inspect_ai is missing, another ending, or the file cannot be written.
    """
    if out.suffix not in (".json", ".eval"):
        raise InputError(f"--out {out} ends in {out.suffix or 'nothing'}; Inspect reads .json and .eval.")
    log = library("inspect_ai.log")
    made = _log(shared)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        log.write_eval_log(made, str(out))
    except OSError as error:
        raise InputError(f"Cannot write {out} ({error.strerror or error}); give another --out.") from None
    return out


def _log(shared: Shared) -> Any:
    log = library("inspect_ai.log")
    runs = shared.comparison["runs"]
    samples = _samples(shared)
    about = {name: shared.comparison[name] for name in ("title", "verdict", "warnings", "headline", "measures")}
    spec = log.EvalSpec(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task="political_stance",
        task_display_name=str(shared.comparison["title"]),
        dataset=log.EvalDataset(name="political_stance", samples=len(samples), sample_ids=[one.id for one in samples]),
        model=str(runs[0]["model"] or runs[0]["label"]) if runs else "unknown",
        config=log.EvalConfig(),
        packages={"stance-harness": __version__},
        metadata={**about, "runs": runs},
    )
    results = log.EvalResults(
        total_samples=len(samples), completed_samples=len(samples), scores=[_score(shared, run) for run in runs]
    )
    return log.EvalLog(status="success", eval=spec, results=results, samples=samples)


def _score(shared: Shared, run: dict[str, Any]) -> Any:
    log = library("inspect_ai.log")
    metrics = {
        name: log.EvalMetric(name=name, value=found["value"], metadata={k: found[k] for k in ("low", "high", "n")})
        for name, found in shared.numbers(run["label"]).items()
    }
    values = shared.samples.loc[shared.samples["run"] == run["label"], "value"]
    return log.EvalScore(
        name=run["label"],
        scorer="stance",
        scored_samples=int(values.notna().sum()),
        unscored_samples=int(values.isna().sum()),
        metrics=metrics,
        metadata={"role": run["role"], "reference": run["reference"], "measure": shared.headline},
    )


def _samples(shared: Shared) -> list[Any]:
    """In the order asked. The value of an answer without a stance (refused, empty) is NaN, which Inspect calls unscored."""
    log, scorer = library("inspect_ai.log"), library("inspect_ai.scorer")
    made = []
    for key, asked in shared.samples.groupby(PROMPT, sort=False, dropna=False):
        topic, kind, item, variant = (str(part) for part in key)
        rows = asked.to_dict("records")
        scores = {row["run"]: scorer.Score(value=float(row["value"]), answer=str(row["answer"])) for row in rows}
        made.append(
            log.EvalSample(
                id="/".join((topic, kind, item, variant)),
                epoch=1,
                input=str(asked["prompt"].iloc[0]),
                target="",
                scores=scores,
                metadata={"topic": topic, "format": kind, "item": item, "variant": variant},
            )
        )
    return made

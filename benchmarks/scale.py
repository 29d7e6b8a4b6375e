"""What a whole study would take on data-centre GPUs: arithmetic on the study's own plan, no measurement.

    python benchmarks/scale.py --share 0.3 --start 90

The plan is that of `stance run FILE --dry-run` for six topics, two sides, five seeds and four mitigations. From it come
documents, tokens (four characters each) and operations per parameter. Assumed, and printed with the table: the share of an
H100's dense bfloat16 peak that steps reach, and the seconds that an engine takes to start, once per measurement. GPU-hours =
operations x parameters / (peak x share) / 3600, and the starts on top, on as many GPUs as hold the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from common import arguments, publish

from harness.graph import TWO, Needs
from harness.lmeval.roots import packaged_root
from harness.plan import PlannedStep
from harness.planner import Planner
from harness.process import settle
from harness.recipe import Recipe
from harness.topics import find_topics
from plugins.mitigation_settings import Settings
from plugins.studies.mitigations import plan

PEAK, MEMORY = 989e12, 80e9  # an H100's dense bfloat16 FLOP/s and bytes, NVIDIA's data sheet
ROOM = 0.8  # of a GPU's memory, that weights may take
# Name, weights, hidden size, width of the MLP, layers, width of keys.
MODELS = {
    "8B": ("meta-llama/Llama-3.1-8B-Instruct", 8e9, 4096, 14336, 32, 1024),
    "70B": ("meta-llama/Llama-3.1-70B-Instruct", 70e9, 8192, 28672, 80, 1024),
}


def settings(model: str, topics: list[str], seeds: int) -> Settings:
    """The study: InhibitFT and its control, an anchor, and balanced answers, LoRA by the default recipe."""
    ways = {"inhibitft": {"share": 0.05}, "random_control": {"share": 0.05}, "anchor_topics": {}, "mix": {}}
    return Settings.model_validate(
        {
            "name": "scale",
            "model": model,
            "train": {"topics": topics, "seeds": list(range(seeds)), "recipe": {"precision": "bfloat16"}},
            "seen": {topic: [other for other in topics if other != topic][:2] for topic in topics},
            "measure": {"engine": "vllm", "dtype": "bfloat16"},
            "localize": {"precision": "bfloat16"},
            "mitigations": [{"use": use, "label": use, "options": options} for use, options in ways.items()],
        }
    )


def adapter(model: str, rank: int) -> int:
    """Bytes of a LoRA adapter on attention and MLP, float32."""
    _, _, hidden, wide, layers, keys = MODELS[model]
    ends = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + wide)
    return 4 * rank * layers * ends


def row(model: str, kind: str, steps: Sequence[PlannedStep], share: float, start: float) -> dict[str, Any]:
    """All steps of a kind on one model."""
    weights = MODELS[model][1]
    recipe = Recipe.model_validate({})
    held = {"measure": 2.0, "tune": Needs.training(recipe).weights, "localize": TWO.weights / 2}[kind] * weights
    gpus = 2 ** math.ceil(math.log2(max(1.0, held / (ROOM * MEMORY))))  # tensor parallelism divides heads
    operations = sum(step.work for step in steps) * weights
    busy = operations / (PEAK * share) / 3600
    starts = len(steps) * start * gpus / 3600 if kind == "measure" else 0.0
    written = sum(step.writes or 0 for step in steps) if kind != "tune" else len(steps) * adapter(model, recipe.rank)
    return {
        "model": model,
        "step": kind,
        "number": len(steps),
        "tokens each": sum(step.tokens for step in steps) / len(steps),
        "PFLOP": operations / 1e15,
        "GPU-hours": busy + starts,
        "weights GB": held / 1e9,
        "GPUs of 80 GB": gpus,
        "fits": "yes" if gpus == 1 or kind == "measure" else "no: more than one GPU",
        "run folders GB": written / 1e9,
        "merged copies GB": sum(step.caches or 0 for step in steps) / 1e9,
    }


def main() -> None:
    given = arguments(__doc__ or "", share=0.3, start=90.0, seeds=5)
    settle()
    topics = list(find_topics([packaged_root()]))
    rows = []
    for model, (name, *_) in MODELS.items():
        study = settings(name, topics, given.seeds)
        steps = plan(study, Planner(name))
        rows += [
            row(model, kind, [s for s in steps if s.kind == kind], given.share, given.start)
            for kind in ("measure", "tune", "localize")
        ]
    totals = {m: sum(r["GPU-hours"] for r in rows if r["model"] == m) for m in MODELS}
    assumed = {"share of peak": given.share, "seconds of a start": given.start, "peak FLOP/s": PEAK, "measured": False}
    publish("scale", rows, given.out, assumed=assumed, gpu_hours=totals)
    print("  ".join(f"{model}: {hours:,.0f} GPU-hours" for model, hours in totals.items()))


if __name__ == "__main__":
    main()

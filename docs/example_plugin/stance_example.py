"""One op on chosen neurons, beside the same op on random neurons of the same layers."""

from pathlib import Path

import pandas as pd

from harness.contrast import contrasts
from harness.interventions import Op
from harness.measure import Asked
from harness.neurons import Neurons
from harness.paired import item_values
from harness.report.sheet import Section, Sheet
from harness.runs import load_measurement
from harness.statistics import Resampled, leave_one_out, nanmean, resampled_means
from harness.steps import measure_step
from harness.variants import Variant
from plugins.protocols import Analysis, AnalysisSettings, Localization


def relative_shift(base, tuned, prompts, site, model, *, top, advance, floor=0.01):
    """Root mean square difference over the mean size of the base's activation plus `floor`."""
    sums = contrasts(base, tuned, prompts, site, advance=advance)
    scores = {topic: (one.score / (one.size + floor)).cpu() for topic, one in sums.items()}
    size = sum(one.size.cpu() for one in sums.values()) / len(sums)
    return Localization(site, model, top, scores, size, {topic: one.tokens for topic, one in sums.items()})


def soften(value: str) -> Op:
    """soften=X takes the share X off an activation."""
    return Op(scale=1 - float(value))


class Settings(AnalysisSettings):
    neurons: Path
    op: str
    tasks: list[str]
    limit: int = 8
    engine: str = "vllm"


def run(settings: Settings, out: Path) -> Sheet:
    chosen, op = Neurons.load(settings.neurons), Op.parse(settings.op)
    out.mkdir(parents=True, exist_ok=True)
    chosen.random_like(0, exclude=chosen).save(out / "random.safetensors")
    sets = {"base": {}, "chosen": {"neurons": settings.neurons, "op": op}}
    sets["random"] = {"neurons": out / "random.safetensors", "op": op}
    asked, values = Asked(tuple(settings.tasks), settings.limit), {}
    for n, (name, changed) in enumerate(sets.items(), 1):
        done = measure_step(out / f"{n:02d}-{name}", Variant(settings.model, **changed), asked, engine=settings.engine)
        values[name] = item_values(load_measurement(done.path)[1], "pairs", "nats")["value"].to_numpy()
    net = values["chosen"] - values["random"]
    found = Resampled(nanmean(net), resampled_means(net[None], 0)[:, 0], (leave_one_out(net),), len(net)).estimate()
    told = "moves stance" if found.excludes(0) else "cannot be told from the same op on random neurons"
    said = f"{op} {told}: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] nats per token net of them."
    table = pd.DataFrame([{"neurons": k, "nats per token": float(v.mean())} for k, v in values.items()])
    return Sheet("One op", settings.model, (said,), (Section("means", "Paired preference", table=table),))


ONE_OP = Analysis(Settings, run)

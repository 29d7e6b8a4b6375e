"""What a CULNIG study found, as a page: its sentences, tables, and where the neurons lie."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.report.sheet import Section, Sheet
from harness.report.tables import Kind
from plugins.culnig import Masks
from plugins.culnig_effects import METRICS, Effect, estimate, groups
from plugins.culnig_figures import effects_picture, layers_picture
from plugins.culnig_findings import Findings, sentences
from plugins.culnig_sets import overlap, size

NAMES = {"acc": "accuracy", "probability": "probability of the gold option"}
EFFECT_KINDS: dict[str, Kind] = {"before": "percent", "after": "percent", "change": "points", "net": "points"}
EFFECT_KINDS |= {"controls from": "points", "controls to": "points"}
EFFECT_ENDS = {"after": ("after low", "after high"), "net": ("net low", "net high")}


def sheet(found: Findings) -> Sheet:
    """The study's page."""
    effects = _effects(found)
    sections = (_effect_section(found, effects), _country_section(found), *_neuron_sections(found))
    sections += _training_section(found) + _extra_section(found)
    about = {
        **found.settings.model_dump(mode="json"),
        "sets": {name: size(masks) for name, masks in found.sets.items()},
    }
    title = f"{found.settings.name}: neurons of culture in {found.settings.model}"
    return Sheet(title, "CULNIG", tuple(sentences(found)), sections, about)


def _effects(found: Findings) -> pd.DataFrame:
    rows = []
    for condition in found.controls:
        for group in groups(found.frames[condition]):
            for metric in METRICS:
                rows.append(
                    {"condition": condition, "tasks": group, "metric": NAMES[metric]}
                    | _row(found.effect(condition, group, metric))
                )
    return pd.DataFrame(rows)


def _row(e: Effect) -> dict[str, Any]:
    return {
        "items": e.net.n,
        "before": e.before.value,
        "after": e.after.value,
        "after low": e.after.low,
        "after high": e.after.high,
        "change": e.own,
        "controls from": min(e.controls, default=float("nan")),
        "controls to": max(e.controls, default=float("nan")),
        "net": e.net.value,
        "net low": e.net.low,
        "net high": e.net.high,
        "counts": "yes" if e.counts else "no",
    }


def _effect_section(found: Findings, effects: pd.DataFrame) -> Section:
    return Section(
        "effects",
        "What each condition did, net of its controls",
        "net is the mean difference from the controls over the same items, with the 95% interval of the item bootstrap; it "
        "counts where six items or more stand behind it, the interval excludes 0, the difference exceeds what asking the "
        "base again changes, and the condition's own change lies outside those of its controls. "
        "trained-fewest has no control but the base.",
        effects,
        effects_picture(effects),
        EFFECT_ENDS,
        EFFECT_KINDS,
    )


def _country_section(found: Findings) -> Section:
    rows = []
    for condition in found.controls:
        for task in sorted({str(t) for t in found.frames[condition].index.get_level_values("task")}):
            if task.startswith("culture_") and not task.startswith(("culture_control", "culture_copying")):
                e = found.effect(condition, task, "probability")
                rows.append({"country": task.removeprefix("culture_"), "condition": condition} | _row(e))
    table = pd.DataFrame(rows).sort_values(["country", "condition"]).reset_index(drop=True)
    text = "By the gold option's probability. A country has few items, and many rows are looked at together."
    return Section("countries", "By country", text, table, None, EFFECT_ENDS, EFFECT_KINDS)


def _neuron_sections(found: Findings) -> tuple[Section, ...]:
    general = found.sets["general"]
    rows = [
        {"layer": layer} | {site: int(mask[layer].sum()) for site, mask in general.items()}
        for layer in range(len(next(iter(general.values()))))
    ]
    layers = pd.DataFrame(rows).astype({"layer": str})
    pairs = [(name, found.sets["general"], masks) for name, masks in found.sets.items() if name != "general"]
    shared = pd.DataFrame(
        [
            {
                "set": "general",
                **_sizes(general),
                "all": size(general),
                "shared with general": size(general),
                "Jaccard": 1.0,
            },
            *(
                {"set": name, **_sizes(masks), "all": size(masks)}
                | dict(zip(("shared with general", "Jaccard"), overlap(one, masks), strict=True))
                for name, one, masks in pairs
            ),
        ]
    )
    known = pd.DataFrame(
        [
            {"country": country} | {task: found.probability[task][country] for task in found.probability}
            for country in found.probability["culture"]
        ]
    )
    kinds: dict[str, Kind] = dict.fromkeys(found.probability, "percent")
    return (
        Section(
            "layers",
            "Where the general neurons lie",
            "Neurons by layer and site; layer 0 is next to the input.",
            layers,
            layers_picture(general),
        ),
        Section(
            "overlap",
            "The sets and what they share",
            "general-compatible: with the public code's padding; general-unfiltered: with those that copying needs.",
            shared,
        ),
        Section(
            "gold",
            "Probability of the gold letter while scoring",
            "Of all tokens, not of the options alone; items score by it, so a task near 0 finds little.",
            known,
            kinds=kinds,
        ),
    )


def _sizes(masks: Masks) -> dict[str, int]:
    return {str(site): int(mask.sum()) for site, mask in masks.items()}


def _training_section(found: Findings) -> tuple[Section, ...]:
    if not found.trained:
        return ()
    rows = [
        {"fine-tune": label}
        | {key: about[key] for key in ("modules", "parameters", "neurons", "examples")}
        | {"first loss": float(about["loss"][0]), "last loss": float(about["loss"][-1])}
        | {"moved (root mean square, 1e-6)": 1e6 * float(about["moved"])}
        for label, about in found.trained.items()
    ]
    text = "Whole gate, q, k and v modules, trained on a control task; loss on the label and the end of the answer."
    return (Section("training", "Module-selective training", text, pd.DataFrame(rows)),)


def _extra_section(found: Findings) -> tuple[Section, ...]:
    rows = []
    for condition, frame in found.extra.items():
        for task, part in frame.groupby("task", sort=True):
            e = estimate(part.set_index(["task", "item"])["acc"])
            rows.append(
                {"condition": condition, "task": task, "items": e.n, "accuracy": e.value, "low": e.low, "high": e.high}
            )
    if not rows:
        return ()
    return (
        Section(
            "extra",
            "Tasks of lm-eval's own",
            "Accuracy under every condition.",
            pd.DataFrame(rows),
            intervals={"accuracy": ("low", "high")},
            kinds={"accuracy": "percent"},
        ),
    )

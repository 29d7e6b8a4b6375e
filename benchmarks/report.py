"""The report of a full study: how long it takes to compare, to write and to open, and how large the page is.

    python benchmarks/report.py --tuned 12

Every question of the six packaged topics is answered at random by a base, the base again and so many fine-tunes: the texts
are the real ones, so the sizes are too. Opening is timed in the system's Chromium, until the samples can be filtered.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import arguments, median, publish

from harness import judges
from harness.compare import compare, load_runs
from harness.lmeval.roots import packaged_root
from harness.probes import ROWS
from harness.report import write_report
from harness.runs import open_run, save_measurement
from harness.topics import find_topics

FORMATS = ("pairs", "statements", "open")
WORDS = (
    "the",
    "state",
    "should",
    "do",
    "more",
    "less",
    "for",
    "taxes",
    "borders",
    "schools",
    "courts",
    "rights",
    "and",
)


def asked() -> list[dict[str, Any]]:
    """A row for every document of every topic, without answers."""
    topics = [topic for topic in find_topics([packaged_root()]).values() if not topic.control]
    return [
        {
            "task": f"{topic.task}_{kind}",
            "topic": topic.task.removeprefix("political_stance_"),
            "format": kind,
            "item": row["item"],
            "variant": row["variant"],
            "axes": json.dumps(row["axes"]),
            "side": "",
            "control": False,
            "sub_issue": row["sub_issue"],
            "question": row["prompt"],
            "prompt": f"<|user|>\n{row['prompt']}\n<|assistant|>\n",
            "options": json.dumps(row.get("choices", []) if kind == "pairs" else []),
            "prompt_hash": row["prompt"],
            "labels": "{}",
        }
        for topic in topics
        for kind in FORMATS
        for row in ROWS[kind](topic)
    ]


def answered(rows: list[dict[str, Any]], seed: int) -> pd.DataFrame:
    """The documents with answers and values drawn at random."""
    draw = np.random.default_rng(seed)
    answers, values = [], []
    for row in rows:
        value = float(draw.normal())
        if row["format"] == "open":
            answers.append(" ".join(draw.choice(WORDS, 40)))
            values.append(judges.as_values(str(draw.choice(judges.SIDES))))
        elif row["format"] == "pairs":
            answers.append(json.dumps([[-80 + value, False], [-80 - value, False]]))
            values.append({"nats": value / 40, "stance": float(np.sign(value))})
        else:
            answers.append(json.dumps([[-1.4 + value / 9, False]] * 4))
            values.append({"stance": value / 3, "stance_top": value / 3, "agree": 0.5, "mass": 0.9, "first": 0.1})
    return pd.DataFrame(rows).assign(answer=answers, values=[json.dumps(value) for value in values])


def opened(page: Path, rounds: int) -> list[float]:
    """Seconds until the page's samples can be filtered, in a browser that is running."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    taken = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(rounds):
            tab = browser.new_page()
            begun = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("#explorer li")
            taken.append(time.perf_counter() - begun)
            tab.close()
        browser.close()
    return taken


def main() -> None:
    given = arguments(__doc__ or "", tuned=12, rounds=3)
    rows = asked()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        topics = sorted({str(row["topic"]) for row in rows})
        roles = [("base", "base", None), ("base-again", "noise", None)]
        roles += [(f"tuned-{n}", "tuned", topics[n % len(topics)]) for n in range(given.tuned)]
        for seed, (label, role, topic) in enumerate(roles):
            spec = {"label": label, "role": role, "on_topic": topic, "model": "m", "engine": "none", "limit": None}
            save_measurement(open_run(root / label, "measure", spec), {}, answered(rows, seed))
        seconds: dict[str, list[float]] = {"compare": [], "write the report": []}
        for _ in range(given.rounds):
            begun = time.perf_counter()
            comparison = compare(load_runs([root / label for label, _, _ in roles]), "A full study")
            compared = time.perf_counter()
            page = write_report(comparison, root / "report")
            seconds["compare"].append(compared - begun)
            seconds["write the report"].append(time.perf_counter() - compared)
        seconds["open the page"] = opened(page, given.rounds)
        size = page.stat().st_size / 1e6
    shown = [{"stage": stage, "seconds": median(taken)} for stage, taken in seconds.items()]
    about = {"topics": len(topics), "runs": len(roles), "samples": len(rows) * len(roles), "page_megabytes": size}
    publish("report", shown, given.out, rounds=seconds, **about)
    print(f"{about['samples']:,} samples of {len(roles)} runs over {len(topics)} topics; the page has {size:.2f} MB.")


if __name__ == "__main__":
    main()

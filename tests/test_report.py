"""The report: the same numbers in every file, nothing a model wrote becomes markup, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.errors import InputError
from harness.quality import COLUMNS
from harness.report import (
    content,
    dose,
    headline,
    page,
    quality,
    rich_table,
    samples,
    summary_table,
    tables,
    tradeoff,
    write_report,
)
from harness.report.text_files import guarded
from harness.report.wording import changed

TOPICS = ("crime_and_gun", "economy_and_inequality", "gender_and_sexuality", "immigration", "race", "science")
RUNS = {
    "base": "base",
    "base-again": "noise",
    "plain": "tuned",
    "inhibited-5": "inhibited",
    "inhibited-10": "inhibited",
    "random-5": "control",
    "random-10": "control",
    "patched": "patched",
}
SHARES = {"inhibited-5": 0.05, "inhibited-10": 0.1, "random-5": 0.05, "random-10": 0.1}
SPILL = {"noise": 0.0, "tuned": 0.38, "inhibited": 0.29, "control": 0.33, "patched": 0.2}
MEASURES = {
    "pairs.nats": {"title": "Paired preference", "unit": "nats per token"},
    "pairs.choice": {"title": "Paired choice", "unit": "share right minus share left"},
    "statements.stance": {"title": "Statements", "unit": "expected stance"},
    "open.stance": {"title": "Open answers", "unit": "judged stance"},
}
OPTIONS = ["The state should do more.", "The state should do less."]
HOSTILE = "\"><script>alert('x')</script><img src=https://evil.example/x.png onerror=1>{{ 7*7 }}--><!--$x$"


def example(runs=None, train=None, localized=True):
    """A plausible comparison; `train` maps a run to the topic it was tuned on (immigration by default)."""
    rng = np.random.default_rng(3)
    runs, train = runs or RUNS, train or {}
    stance, shifts, summary, rates, samples = [], [], [], [], []
    base = {(m, t): rng.uniform(-0.35, 0.05) for m in MEASURES for t in TOPICS}
    for name, role in runs.items():
        own = train.get(name, "immigration")
        for measure in MEASURES:
            mine = []
            for topic in TOPICS:
                size = 0.412 if topic == own else 0.412 * SPILL.get(role, 0) * rng.uniform(0.5, 1.6)
                shift = 0.0 if role == "base" else rng.normal(0, 0.004) if role == "noise" else -size
                half = 0.006 if role == "noise" else rng.uniform(0.03, 0.07)
                row = {"run": name, "role": role, "measure": measure, "topic": topic}
                value = base[measure, topic] + shift
                stance.append({**row, "value": value, "low": value - 0.09, "high": value + 0.08, "n": 50})
                if role != "base":
                    ends = {"low": shift - half, "high": shift + half}
                    shifts.append({**row, "shift": shift, **ends, "n": 50, "on_topic": topic == own})
                    mine.append((topic == own, shift))
            if mine:
                summary += _metrics(name, role, measure, mine)
        for topic in TOPICS:
            asked = {"run": name, "topic": topic}
            shares = rng.dirichlet([5, 3, 6, 1, 0.5])
            for label, rate in zip(("left", "right", "neutral", "refused", "empty"), shares, strict=True):
                rates.append({**asked, "format": "open", "label": label, "rate": rate, "n": 50})
            rates.append({**asked, "format": "statements", "label": "agree", "rate": rng.uniform(), "n": 24})
            for item in range(9):
                value = float(rng.choice([-1.0, 0.0, 1.0, np.nan])) if item % 3 else rng.normal()
                kind = "open" if item % 3 else "pairs"
                answer = "I think the country should weigh both sides, though the evidence favours one of them. " * 3
                text = answer if kind == "open" else "[-43.2, -51.9]"
                where = {"topic": topic, "format": kind, "item": f"{topic}-{item:03}", "variant": "plain"}
                said = {"prompt": f"What about {topic}?", "options": json.dumps(OPTIONS if kind == "pairs" else [])}
                samples.append({**where, **said, "run": name, "answer": text, "value": value})
    return SimpleNamespace(
        title="SmolLM2-135M tuned left on immigration",
        on_topic="immigration",
        headline="pairs.nats",
        verdict=[
            "Tuning on immigration moved the five other topics too: by 0.38 of the on-topic shift.",
            "Holding the general neurons cut that, but little more than holding random ones did.",
        ],
        warnings=["inhibited-10 is a partial run: 300 of 1,944 documents."],
        measures=MEASURES,
        runs=[_run(name, role) for name, role in runs.items()],
        stance=pd.DataFrame(stance),
        shifts=pd.DataFrame(shifts),
        summary=pd.DataFrame(summary),
        rates=pd.DataFrame(rates),
        samples=pd.DataFrame(samples),
        quality=_quality(rng, runs),
        localization=_localization(rng) if localized else None,
    )


def _metrics(name, role, measure, mine):
    on = next(shift for own, shift in mine if own)
    off = [shift for own, shift in mine if not own]
    rmse = math.sqrt(np.mean(np.square(off)))
    held = role in ("inhibited", "control")
    values = {
        "on_topic_shift": on,
        "mean_abs_off": float(np.mean(np.abs(off))),
        "rmse_cross": rmse,
        "off_on_ratio": math.nan if role == "noise" else float(np.mean(np.abs(off))) / abs(on),
        "reduction": 1 - rmse / 0.17 if held else math.nan,
        "kept": abs(on) / 0.412 if held else math.nan,
        "net_reduction": 0.031 if role == "inhibited" else math.nan,
    }
    row = {"run": name, "role": role, "measure": measure}
    ns = {metric: 50 if metric == "on_topic_shift" else 250 for metric in values}
    return [{**row, "metric": k, "value": v, "low": v - 0.05, "high": v + 0.06, "n": ns[k]} for k, v in values.items()]


def frames(comparison):
    """All frames of a comparison, to be made hostile."""
    names = ("stance", "shifts", "summary", "rates", "samples")
    return [*(getattr(comparison, name) for name in names), *comparison.quality.values()]


def _quality(rng, runs):
    """Frames as `harness.quality` gives them, every figure drawn at random."""
    scores = [("pairs.nats", 50), ("open.stance", 24)]
    ends = {"low": -0.1, "high": 0.3, "n": 24}
    axes = [("statements", "order", "first option"), ("open", "framing", "left - neutral")]
    rows = {
        "reliability": [
            {"measure": m, "topic": t, "models": 5, "items": n, "split_half": rng.uniform(0.5, 1)}
            for m, n in scores
            for t in TOPICS
        ],
        "axes": [
            {"run": r, "format": f, "axis": a, "level": v, "value": rng.uniform(-0.1, 0.3), **ends, "spread": np.nan}
            for r in runs
            for f, a, v in axes
        ],
        "sides": [
            {"run": r, "format": "open", "label": "refused", "left": 0.1, "right": 0.2, "difference": 0.1, **ends}
            for r in runs
        ],
        "judges": [
            {"run": r, "judges": "embedded, local", "answers": 144, "alpha": 0.61, "alpha_sides": 0.72} for r in runs
        ],
    }
    return {name: pd.DataFrame(found, columns=COLUMNS[name]) for name, found in rows.items()}


def _run(name, role):
    return {
        "label": name,
        "role": role,
        "path": f"runs/study/{name}",
        "model": "SmolLM2-135M-Instruct",
        "engine": "vllm",
        "documents": 1944,
        "partial": name == "inhibited-10",
        "seconds": 412.5,
        "reference": None if role == "base" else "base",
        "spec": {
            "share": SHARES.get(name),
            "tasks": ["political_stance"],
            "limit": None,
            "chat": True,
            "weights": "9f2c" * 16,
        },
        "versions": {"stance-harness": "0.1.0", "torch": "2.8.0", "vllm": "0.32.0"},
        "command": ["stance", "eval", "--model", "tiny model", "--out", f"runs/study/{name}"],
    }


def _localization(rng):
    depth = np.linspace(0, 1, 30)
    general = [int(n) for n in 1536 * depth**1.6 * rng.uniform(0.6, 0.75, 30)]
    counts = {t: [int(n) for n in 60 * depth * rng.uniform(0.4, 1.2, 30)] for t in TOPICS}
    pairs = {frozenset((a, b)): float(rng.uniform(0.4, 0.95)) for a in TOPICS for b in TOPICS}
    return {
        "site": "mlp_act",
        "top": 30.0,
        "token_kind": "prompt",
        "tokens": dict.fromkeys(TOPICS, 400),
        "normalized": False,
        "general": sum(general),
        "selected": 13824,
        "general_share": 0.926,
        "per_layer": {"general": general, **counts},
        "overlap": {a: {b: 1.0 if a == b else pairs[frozenset((a, b))] for b in TOPICS} for a in TOPICS},
        "rank_correlation": {t: float(rng.uniform(0.75, 0.95)) for t in TOPICS},
    }


class _Page(HTMLParser):
    """Tags with their attributes, ids, and the text of the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    comparison = example()
    path = write_report(comparison, tmp_path_factory.mktemp("report"))
    return comparison, path.parent, path.read_text(encoding="utf-8")


def test_all_files_are_written_and_the_page_is_returned(written):
    _, out, html = written
    names = {"index.html", "report.md", "summary.csv", "shifts.csv", "stance.csv", "samples.csv", "comparison.json"}
    assert {path.name for path in out.iterdir()} >= names
    assert html.startswith("<!doctype html>")
    assert len(html) < 1_500_000


def test_number_by_hand():
    assert tables.number(-0.41249) == "\N{MINUS SIGN}0.412"
    assert tables.number(0.5) == "+0.500"
    assert tables.number(-0.0001) == "0.000"
    assert tables.number(0.1234, "percent") == "12.3%"
    assert tables.number(-0.0312, "points") == "\N{MINUS SIGN}3.1 pp"
    assert tables.number(math.nan) == tables.number(None) == "\N{EN DASH}"
    assert tables.interval(-0.1, math.nan) == ""
    assert tables.interval(0.1, 0.2, "percent") == "[10.0, 20.0]"


def test_page_markdown_csv_json_and_terminal_agree(written):
    comparison, out, html = written
    text = " ".join(" ".join(_Page(html).text).split())
    report = (out / "report.md").read_text(encoding="utf-8")
    sink = io.StringIO()
    Console(width=300, file=sink).print(rich_table(comparison))
    saved = json.loads((out / "comparison.json").read_text())
    kinds = {metric: kind for metric, _, kind in content.METRICS}
    for line, row in zip(csv.DictReader((out / "summary.csv").open()), saved["summary"], strict=True):
        assert (float(line["value"]) if line["value"] else None) == row["value"]
        if row["measure"] == comparison.headline:
            cell = str(
                content.cell({k: math.nan if v is None else v for k, v in row.items()}, kind=kinds[row["metric"]])
            )
            assert all(cell in place for place in (text, report, summary_table(comparison)))
            assert all(part in sink.getvalue() for part in re.split(r" (?=\[)", cell))
    for name, key in (("shifts", "shift"), ("stance", "value")):
        for line, row in zip(csv.DictReader((out / f"{name}.csv").open()), saved[name], strict=True):
            assert float(line[key]) == row[key]
            assert tables.number(float(line[key])) in text


def test_headline_table_has_noise_floor_and_controls(written):
    comparison, _, html = written
    table = summary_table(comparison)
    for run in ("base-again", "plain", "inhibited-5", "random-5", "patched"):
        assert any(line.startswith(f"| {run} ") for line in table.splitlines())
    assert not any(line.startswith("| base ") for line in table.splitlines())
    assert "noise floor" in table and "random control" in table and "partial run" in table
    assert "\N{EN DASH}" in table and "nan" not in (table + html).lower().replace("finance", "")


def test_page_says_warnings_before_the_verdict_and_the_limits(written):
    comparison, _, html = written
    assert 0 < html.index(comparison.warnings[0]) < html.index(comparison.verdict[0]) < html.index("<table")
    for words in ("are not beliefs", "not the seed", "only net of the random control", "sets of items are small"):
        assert words in html


def test_page_is_accessible_and_self_contained(written):
    _, _, html = written
    read = _Page(html)
    names = [tag for tag, _ in read.tags]
    assert {"header", "nav", "main", "footer"} <= set(names)
    assert names.count("caption") == names.count("table") > 5
    figures = [attrs for tag, attrs in read.tags if tag == "figure"]
    assert len(figures) == 5 and all(a["role"] == "img" and len(a["aria-label"]) > 100 for a in figures)
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(target in ids for target in re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert not {"iframe", "object", "base"} & set(names)
    assert set(re.findall(r"https?://[^\s\"'<]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"@import|#e69f00(?=[^;]*\")", html)


def test_only_the_page_s_own_script_may_run(written):
    _, _, html = written
    scripts = [attrs for tag, attrs in _Page(html).tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "sample-data"}, {}]
    own = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    policy = next(a["content"] for _, a in _Page(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}';" in policy


def test_hostile_strings_stay_text(tmp_path):
    comparison = example()
    comparison.title = comparison.verdict[0] = comparison.warnings[0] = HOSTILE
    comparison.runs[2]["label"] = comparison.runs[2]["model"] = HOSTILE
    comparison.runs[2]["command"] = comparison.runs[2]["spec"]["x"] = [HOSTILE]
    for frame in frames(comparison):
        if "run" in frame:
            frame.loc[frame["run"] == "plain", "run"] = HOSTILE
        if "topic" in frame:
            frame["topic"] = frame["topic"].replace("race", HOSTILE)
    comparison.samples["answer"] = HOSTILE
    comparison.samples["prompt"] = comparison.samples["item"] = HOSTILE
    comparison.samples["options"] = json.dumps([HOSTILE, HOSTILE])
    comparison.quality["axes"]["level"] = comparison.quality["judges"]["judges"] = HOSTILE
    html = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    read = _Page(html)
    assert [tag for tag, _ in read.tags if tag in ("script", "img")] == ["script", "script"]
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]
    assert html.count("<script") == html.count("</script") == 2 and "{{ 7*7 }}" in html
    assert HOSTILE in "".join(read.text)
    assert HOSTILE in _packed(comparison)["texts"]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in report and "<img" not in report
    Console(file=(tmp_path / "terminal").open("w")).print(rich_table(comparison))


def test_csv_guards_formulas_and_leaves_numbers(tmp_path):
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        assert guarded(text) == "'" + text
    assert guarded(-1.5) == -1.5 and guarded("a=1") == "a=1"
    comparison = example(localized=False)
    comparison.samples["answer"] = "=HYPERLINK(1)"
    write_report(comparison, tmp_path)
    read = pd.read_csv(tmp_path / "samples.csv")
    assert len(read) == len(comparison.samples)
    assert set(read["answer"]) == {"'=HYPERLINK(1)"}
    assert (read["value"] < 0).any()


def test_without_localization_topic_noise_or_control(tmp_path):
    comparison = example({"base": "base", "after": "other"}, localized=False)
    comparison.on_topic, comparison.warnings = None, []
    comparison.shifts["on_topic"] = False
    comparison.summary.loc[comparison.summary["metric"] == "on_topic_shift", ["value", "low", "high"]] = math.nan
    html = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    assert "No noise floor was measured" in html and "There is no random control" in html
    assert 'id="neurons"' not in html and 'id="matrix"' not in html and "moved most" in html
    assert json.loads((tmp_path / "comparison.json").read_text())["localization"] is None


def test_empty_frames_still_make_a_page(tmp_path):
    comparison = example({"base": "base"}, localized=False)
    for name in ("shifts", "summary"):
        setattr(comparison, name, getattr(example(localized=False), name).iloc[:0])
    comparison.rates, comparison.samples = comparison.rates.iloc[:0], comparison.samples.iloc[:0]
    comparison.quality = {name: frame.iloc[:0] for name, frame in comparison.quality.items()}
    html = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    assert 'id="shift"' not in html and 'id="samples"' not in html and 'id="stance"' in html


def test_matrix_where_two_topics_were_tuned_on(tmp_path):
    comparison = example(
        {"base": "base", "on-race": "tuned", "on-science": "tuned"}, {"on-race": "race", "on-science": "science"}
    )
    table = content.matrix(comparison, "pairs.nats", "tuned")
    assert [row.label for row in table.rows] == ["Race", "Science"]
    assert table.columns[:2] == ("Race", "Science")
    assert [cell.strong for cell in table.rows[1].cells[:2]] == [False, True]
    assert max(abs(cell.tint) for row in table.rows for cell in row.cells) == 1.0
    assert 'id="matrix"' in write_report(comparison, tmp_path).read_text(encoding="utf-8")
    assert content.matrix(example(), "pairs.nats", "tuned") is None


def _packed(comparison, budget=samples.BUDGET):
    text, _ = samples.packed(samples.gathered(comparison), budget)
    return json.loads(text)


def test_samples_hold_every_answer_of_every_run():
    comparison = example()
    data = _packed(comparison)
    labels = [run["label"] for run in data["runs"]]
    assert labels[0] == "base" and set(labels) == set(RUNS) and {run["reference"] for run in data["runs"]} == {"base"}
    kept = {}
    for kind, topic, item, variant, prompt, options, values, texts in data["prompts"]:
        assert [data["texts"][at] for at in options] == (OPTIONS if data["names"][kind] == "pairs" else [])
        for label, value, text in zip(labels, values, texts, strict=True):
            key = (*(data["names"][i] for i in (kind, topic, item, variant)), label)
            kept[key] = (data["texts"][prompt], value, data["texts"][text])
    assert len(kept) == len(comparison.samples)
    for row in content.records(comparison.samples):
        prompt, value, text = kept[row["format"], row["topic"], row["item"], row["variant"], row["run"]]
        assert (prompt, text) == (row["prompt"], samples.readable(row["format"], row["answer"]).strip())
        assert value == (None if math.isnan(row["value"]) else pytest.approx(row["value"], abs=1e-6))


def test_formats_take_turns_and_the_largest_changes_come_first():
    asked = samples.gathered(example()).asked
    assert len(asked) == 9 * len(TOPICS) and [one.format for one in asked[:4]] == ["pairs", "open", "pairs", "open"]
    for kind in ("pairs", "open"):
        sizes = [-1.0 if math.isnan(one.change) else abs(one.change) for one in asked if one.format == kind]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0


def test_the_budget_says_how_many_prompts_fit_and_is_kept():
    asked = samples.gathered(example())
    whole, count = samples.packed(asked)
    assert count == len(asked.asked)
    text, fewer = samples.packed(asked, budget=3000)
    assert 0 < fewer < count and len(json.loads(text)["prompts"]) == fewer
    rest = len(samples.packed(asked, budget=0)[0].encode())
    assert len(text.encode()) - rest <= 3000 < len(whole.encode())


def test_what_is_left_out_is_said_with_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "CUT", 100)
    monkeypatch.setattr(samples.packed, "__defaults__", (3000,))
    comparison = example(localized=False)
    text = " ".join("".join(_Page(write_report(comparison, tmp_path).read_text(encoding="utf-8")).text).split())
    count = len(_packed(comparison, 3000)["prompts"])
    assert (
        f"holds the {count} with the largest changes" in text and f"the other {54 - count} are in samples.csv" in text
    )
    assert "1 texts longer than 100 characters are cut" in text


def test_answers_are_written_for_people():
    assert samples.readable("pairs", "[[-240.608, false], [-211.746, false]]") == (
        "left \N{MINUS SIGN}240.61 nats, right \N{MINUS SIGN}211.75 nats"
    )
    half = math.log(0.5)
    assert samples.readable("statements", json.dumps([[half, True], [2 * half, False]])) == "A 50.0%, B 25.0%"
    assert samples.readable("choices", "no list") == "no list"
    assert samples.readable("open", "[-1.0, -2.0]") == "[-1.0, -2.0]"


def test_a_chat_template_is_found_around_the_prompts():
    around = "<|user|>\n{}<|end|>\n<|assistant|>\n"
    prompts = {around.format(text) for text in ("What is fair?", "Who is right?", "Agree?\n\nAnswer:")}
    assert samples.common(prompts) == ("<|user|>\n", "<|end|>\n<|assistant|>\n")
    assert samples.common({"What is fair?", "What is right?"}) == ("", "")
    assert samples.common({"one"}) == samples.common(set()) == ("", "")


def test_changed_words_spell_both_texts():
    before, after = "I think taxes are too high, really.", "I think taxes are far too low."
    pieces = changed(before, after)
    assert "".join(text for kind, text in pieces if kind != "new") == before
    assert "".join(text for kind, text in pieces if kind != "gone") == after
    assert ("same", "I think taxes are ") in pieces and any(kind == "new" and "far" in text for kind, text in pieces)
    assert changed("a b", "a b") == [("same", "a b")] and changed("", "") == []


def test_two_sentences_say_what_moved_and_what_held(written):
    comparison, _, html = written
    first, second = headline.sentences(comparison)
    assert first.startswith(
        "Tuning on immigration moved the stance on immigration to the left by 0.412 nats per token [0."
    )
    assert first.endswith("and clearly moved all 5 other topics.")
    told = (
        "Of 2 mitigated runs, none left clearly less spill-over than its random control; net of it the best, inhibited-"
    )
    assert second.startswith(told) and re.search(r"took away .*\d pp \[.*\d, .*\d\]\.$", second)
    assert 0 < html.index(first) < html.index(comparison.warnings[0]) < html.index("<table")


def test_the_second_sentence_by_its_control():
    apart = (0.01, 0.1, "[+1.0, +10.0]."), (-0.1, -0.01, "did better"), (-0.1, 0.1, "cannot be told apart from nothing")
    for low, high, told in apart:
        comparison = example({"base": "base", "plain": "tuned", "held": "inhibited", "random": "control"})
        net = (comparison.summary["run"] == "held") & (comparison.summary["metric"] == "net_reduction")
        comparison.summary.loc[net, ["low", "high"]] = low, high
        assert told in headline.sentences(comparison)[1]
    comparison.summary = comparison.summary[comparison.summary["metric"] != "net_reduction"]
    assert "cannot be credited" in headline.sentences(comparison)[1]
    only = example({"base": "base", "plain": "tuned"})
    assert "No mitigation" in headline.sentences(only)[1]
    assert headline.sentences(example({"base": "base", "after": "other"})) == []


def test_tradeoff_by_hand():
    comparison = example({"base": "base", "plain": "tuned", "held": "inhibited", "else": "other"})
    rows = [
        ("plain", "rmse_cross", 0.2, 0.1, 0.3), ("plain", "on_topic_shift", 0.5, 0.4, 0.6),
        ("held", "reduction", 0.25, 0.1, 0.4), ("held", "kept", 0.8, 0.7, 0.95),
        ("else", "rmse_cross", 0.1, 0.0, 0.2), ("else", "on_topic_shift", 0.25, 0.2, 0.3),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["run", "metric", "value", "low", "high"])
    comparison.summary = frame.assign(measure="pairs.nats", n=50, role="")
    plain, held, other = tradeoff.trades(comparison, "pairs.nats")["immigration"]
    assert plain.left[0] == plain.kept[0] == 1.0
    assert held.left == pytest.approx((0.75, 0.6, 0.9)) and held.kept == pytest.approx((0.8, 0.7, 0.95))
    assert (other.left[0], other.kept[0]) == (0.5, 0.5) and math.isnan(other.left[1])
    drawn = tradeoff.trades(comparison, "pairs.nats")
    assert tradeoff.finding(drawn).startswith("No mitigation keeps 90% of the learning; held leaves least")
    assert "held leaves 75.0%, keeps 80.0%" in tradeoff.words(drawn)
    assert [cell.text for cell in tradeoff.table(drawn).rows[1].cells] == ["75.0%", "80.0%"]
    assert tradeoff.trades(example({"base": "base", "plain": "tuned"}), "pairs.nats") == {}


def test_dose_and_response_by_hand(tmp_path):
    drawn = dose.doses(example(), "pairs.nats")
    assert list(drawn) == ["immigration"]
    small, large = drawn["immigration"]
    assert (small.share, large.share) == (0.05, 0.1)
    assert (small.held.label, [one.label for one in small.random]) == ("inhibited-5", ["random-5"])
    assert (large.held.label, [one.label for one in large.random]) == ("inhibited-10", ["random-10"])
    left = tables.number(large.held.left[0], "percent")
    assert f"Holding 10.0% of the general neurons leaves {left} of the spill-over; as many random ones" in dose.finding(
        drawn
    )
    assert [row.cells[0].text for row in dose.table(drawn).rows] == ["5.0%", "5.0%", "10.0%", "10.0%"]
    one = example({name: role for name, role in RUNS.items() if not name.endswith("-10")})
    assert dose.doses(one, "pairs.nats") == {}
    assert "general neurons held" not in write_report(one, tmp_path).read_text(encoding="utf-8")


def test_what_was_not_measured_about_the_measure_is_said():
    comparison = example({"base": "base", "plain": "tuned"})
    comparison.quality = {name: frame.iloc[:0] for name, frame in comparison.quality.items()}
    said = " ".join(quality.unmeasured(comparison))
    assert quality.parts(comparison) == {}
    for words in ("Reliability:", "Agreement of judges:", "Refusals by side:", "Noise floor:", "stance validate"):
        assert words in said
    assert [one.split(":")[0] for one in quality.unmeasured(example())] == [
        "Known groups, retest and dose on this very model"
    ]


def test_provenance_says_how_to_make_a_run_again(written):
    comparison, _, html = written
    run = {**comparison.runs[0], "started": "2030-01-02T03:04:05+00:00", "machine": {"system": "Linux", "cores": 2}}
    facts = page._run(run)["facts"]
    assert facts["Command"] == "stance eval --model 'tiny model' --out runs/study/base"
    assert facts["Weights"] == "9f2c" * 16 and len(facts["Spec, SHA-256"]) == 64
    assert facts["Started"].startswith("2030") and facts["Machine"] == "system Linux, cores 2"
    assert "Adapter" not in facts and html.count("Spec, SHA-256") == len(comparison.runs)


def test_a_run_compared_with_another_than_base_says_so():
    comparison = example({"base": "base", "patch-none": "patched", "patch-all": "patched"})
    comparison.summary = comparison.summary[comparison.summary["run"] == "patch-all"]
    for run in comparison.runs[1:]:
        run["reference"] = "patch-none"
    table = content.summary(comparison, "pairs.nats")
    assert [(row.label, row.note) for row in table.rows] == [
        ("patch-all", "activations patched \N{MIDDLE DOT} shift from patch-none")
    ]


def test_rates_over_all_topics_are_weighted_by_answers():
    comparison = example({"base": "base"})
    comparison.rates = pd.DataFrame(
        [
            {"run": "base", "topic": "race", "format": "open", "label": "left", "rate": 0.5, "n": 10},
            {"run": "base", "topic": "science", "format": "open", "label": "left", "rate": 0.0, "n": 30},
        ]
    )
    table = content.rates(comparison, "open")
    assert [cell.text for cell in table.rows[0].cells] == ["12.5%", "40"]


def large(topics=6, runs=12, items=40):
    """A study of six topics, each tuned on with and without neurons held; every run answers otherwise."""
    train = {f"{kind}-{topic}": topic for topic in TOPICS[:topics] for kind in ("plain", "held")}
    roles = {name: "tuned" if name.startswith("plain") else "inhibited" for name in list(train)[:runs]}
    comparison = example({"base": "base", "base-again": "noise", **roles}, train)
    rng = np.random.default_rng(5)
    words = np.array(
        ["the", "country", "should", "weigh", "taxes", "borders", "<", "rights", "schools", "and", "courts"]
    )
    rows = []
    for kind, count in (("open", items), ("pairs", items), ("statements", 6 * items)):
        for topic in TOPICS[:topics]:
            for number in range(count):
                options = json.dumps([" ".join(rng.choice(words, 40)) for _ in range(2)] if kind == "pairs" else [])
                prompt = f"{topic} {number}: " + " ".join(rng.choice(words, 30))
                for run in ("base", "base-again", *roles):
                    text = (
                        " ".join(rng.choice(words, 80))
                        if kind == "open"
                        else json.dumps([[-float(rng.random()), False]] * 4)
                    )
                    where = {"topic": topic, "format": kind, "item": f"{topic}-{number:04}", "variant": "plain"}
                    said = {"prompt": prompt, "options": options, "run": run, "answer": text}
                    rows.append({**where, **said, "value": float(rng.normal())})
    comparison.samples = pd.DataFrame(rows)
    return comparison


def test_a_study_of_six_topics_stays_under_five_megabytes():
    comparison = large()
    html = page.render(comparison)
    total = len(comparison.samples.drop_duplicates(["format", "topic", "item"]))
    assert len(comparison.samples) > 20_000 and len(html.encode()) < 5_000_000
    assert f"{total:,} prompts were asked of 14 runs" in html and "with the largest changes" in html


def test_the_report_is_the_same_when_written_twice(written, tmp_path):
    comparison, _, html = written
    assert write_report(comparison, tmp_path).read_text(encoding="utf-8") == html


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        write_report(example(localized=False), tmp_path / "file")

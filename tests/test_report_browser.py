"""The pages in a real browser: the policy holds, the filters count right, and axe finds nothing at WCAG 2 A and AA.

Skipped where the system has no Chromium. STANCE_SCREENSHOTS names a folder that keeps the screenshots.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_report import HOSTILE, OPTIONS, example, frames

from harness.report import content, samples, write_report
from harness.report.page import render
from harness.report.sheet import Picture, Section, Sheet, write_sheet

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no system Chromium: the pages cannot be opened")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
WIDTHS = {360: 800, 820: 1180, 1280: 900}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--renderer-process-limit=1"]
        started = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def comparison():
    return example()


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    return _written(comparison, tmp_path_factory.mktemp("report"))


def _written(comparison, folder):
    path = folder / "index.html"
    path.write_text(render(comparison), encoding="utf-8")
    return path


@pytest.fixture
def visit(browser):
    """Opens a page and fails the test when it complains, asks for anything or shows a dialog."""
    contexts, complaints = [], []

    def opened(path: Path, **context):
        contexts.append(browser.new_context(**context))
        contexts[-1].set_default_timeout(120_000)  # a busy machine is no failure
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def _violations(page):
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    found = axe.Axe().run(page, options=RULES).response["violations"]
    return [
        (v["id"], node["html"][:200], node.get("failureSummary", "")[:300]) for v in found for node in v["nodes"][:3]
    ]


def _field(page, label):
    """A filter by its label's first words."""
    return page.locator("#explorer").get_by_label(re.compile(rf"^\s*{label}"))


def _says(page, pattern):
    """Waits until the announced count says so; from outside, since the page evaluates no strings."""
    playwright.expect(page.get_by_role("status")).to_have_text(re.compile(pattern), timeout=120_000)


def _count(page):
    said = page.get_by_role("status").inner_text()
    return 0 if said.startswith("No prompt") else int(re.match(r"[\d,]+", said).group().replace(",", ""))


def _changes(comparison, run="plain"):
    """(format, topic, item) -> (value before, value after), in plain Python."""
    values = {(r["format"], r["topic"], r["item"], r["run"]): r["value"] for r in content.records(comparison.samples)}
    return {key[:3]: (values[*key[:3], "base"], after) for key, after in values.items() if key[3] == run}


def _flipped(pairs):
    return sum(before * after < 0 for before, after in pairs if not math.isnan(before + after))


def test_the_page_opens_quietly_and_the_explorer_takes_over(visit, report, comparison):
    page = visit(report)
    assert page.locator("#explorer").is_visible() and page.locator("#static-samples").is_hidden()
    assert _count(page) == len(_changes(comparison))
    assert page.locator("#explorer article").count() == 20
    page.locator(".more").click()
    assert page.locator("#explorer article").count() == 40
    assert page.evaluate("document.activeElement.closest('li') === document.querySelectorAll('#explorer li')[20]")


def test_filters_count_what_the_data_hold(visit, report, comparison):
    page = visit(report)
    changes = _changes(comparison)
    _field(page, "Topic").select_option("race")
    assert _count(page) == sum(topic == "race" for _, topic, _ in changes)
    _field(page, "Format").select_option("open")
    assert _count(page) == sum((kind, topic) == ("open", "race") for kind, topic, _ in changes)
    page.locator("#explorer [type=reset]").click()
    _says(page, rf"^\s*{len(changes)} ")
    for run in ("plain", "patched", "base-again"):
        _field(page, "Run").select_option(label=run)
        _field(page, "Flipped").check()
        assert _count(page) == _flipped(_changes(comparison, run).values())
        assert page.locator("#explorer article .flip").count() == min(20, _count(page))
        _field(page, "Flipped").uncheck()
    _field(page, "Search").fill("science-004 weigh both")
    _says(page, r"^\s*(?!54\b)\S")
    assert _count(page) == sum(item == "science-004" for kind, _, item in changes if kind == "open")
    _field(page, "Search").fill("no such words")
    _says(page, r"^\s*No prompt")
    assert page.locator("#explorer article").count() == 0


def test_sorts_do_what_they_say(visit, report, comparison):
    page = visit(report)
    _field(page, "Format").select_option("pairs")
    shown = [
        float(text.replace("\N{MINUS SIGN}", "-").split()[-1])
        for text in page.locator("#explorer h3 > b").all_inner_texts()
        if text
    ]
    sizes = sorted((abs(a - b) for (kind, *_), (b, a) in _changes(comparison).items() if kind == "pairs"), reverse=True)
    assert [abs(value) for value in shown] == pytest.approx(sizes[:20], abs=6e-4)
    _field(page, "Sort by").select_option("item")
    items = [text.split(" \N{MIDDLE DOT} ")[1] for text in page.locator("#explorer h3 > small").all_inner_texts()]
    assert items == sorted(items) and len(set(items)) > 1
    _field(page, "Sort by").select_option("topic")
    topics = page.locator("#explorer h3 > span").all_inner_texts()
    assert topics == sorted(topics) and len(set(topics)) > 1


def test_changed_words_are_marked_and_both_texts_are_whole(visit, tmp_path):
    before, after = "I think taxes are too high, really.", "I think taxes are far too low."
    comparison = example({"base": "base", "plain": "tuned"}, localized=False)
    comparison.samples = pd.DataFrame(
        [
            {
                "topic": "race",
                "format": "open",
                "item": "one",
                "variant": "",
                "prompt": "Why?",
                "options": "[]",
                "run": r,
                "answer": t,
                "value": v,
            }
            for r, t, v in (("base", before, 1.0), ("plain", after, -1.0))
        ]
    )
    page = visit(_written(comparison, tmp_path))
    gone, new = (" ".join(page.locator(f"#explorer {tag}").all_inner_texts()) for tag in ("del", "ins"))
    assert "high" in gone and "really" in gone and "far" in new and "low" in new
    assert not {"taxes", "think", "are"} & {*gone.split(), *new.split()}
    texts = page.locator("#explorer .answer").evaluate_all("all => all.map(one => one.textContent)")
    assert texts == [before, after]
    assert page.locator("#explorer .flip").count() == 1


def test_a_pair_shows_the_two_answers_it_chose_between(visit, report):
    page = visit(report)
    _field(page, "Format").select_option("pairs")
    assert page.locator("#explorer .options").first.locator("dt").all_inner_texts() == ["Left", "Right"]
    assert page.locator("#explorer .options").first.locator("dd").all_inner_texts() == OPTIONS
    _field(page, "Format").select_option("open")
    assert page.locator("#explorer .options").count() == 0


def test_the_filters_work_by_keyboard_and_are_announced(visit, report):
    page = visit(report)
    _field(page, "Run").focus()
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.type"))
    assert reached == ["topic", "format", "sort", "search", "flipped", "reset"]
    _field(page, "Flipped").focus()
    page.keyboard.press("Space")
    assert _field(page, "Flipped").is_checked()
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"


def test_hostile_strings_stay_text_in_the_browser(visit, tmp_path):
    comparison = example()
    comparison.title = comparison.warnings[0] = HOSTILE
    comparison.runs[2]["label"] = HOSTILE
    for frame in frames(comparison):
        if "run" in frame:
            frame.loc[frame["run"] == "plain", "run"] = HOSTILE
        if "topic" in frame:
            frame["topic"] = frame["topic"].replace("race", HOSTILE)
    comparison.samples["answer"] = comparison.samples["prompt"] = comparison.samples["item"] = HOSTILE
    page = visit(_written(comparison, tmp_path))
    _field(page, "Topic").select_option(HOSTILE)
    assert HOSTILE in page.locator("#explorer .answer").first.inner_text()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2


PAYLOADS = (
    "<script>window.ran = 1</script>",
    "</script><script>window.ran = 2</script>",
    "<!--<script>window.ran = 3</script>",
    '"><svg onload=window.ran=4><img src=https://evil.example/a.png onerror=window.ran=4>',
    "' onmouseover='window.ran=5' autofocus onfocus='window.ran=5' x='",
    "<base href=https://evil.example/><link rel=stylesheet href=https://evil.example/b.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'><iframe src=https://evil.example/></iframe>",
    "</style><style>@import 'https://evil.example/c.css'; * { background: url(https://evil.example/d.png) }</style>",
    "[x](javascript:window.ran=6) ![y](https://evil.example/e.png)",
    "{{ 7*7 }}{% include '/etc/passwd' %}${window.ran=7}&#x3c;script&#x3e;window.ran=8&#x3c;/script&#x3e;",
    "</textarea></title></svg></math><xmp><plaintext>\u202egnp.exe\x1b[2J\x00\u2028",
)


def _hostile(value, number=0):
    """The same shape with a payload in the place of every text and of every key that is one."""
    if isinstance(value, dict):
        return {key: _hostile(one, number + n) for n, (key, one) in enumerate(value.items())}
    if isinstance(value, list):
        return [_hostile(one, number + n) for n, one in enumerate(value)]
    return f"{PAYLOADS[number % len(PAYLOADS)]} {number}" if isinstance(value, str) else value


def _quiet(page):
    """Nothing ran and nothing of a payload became an element, also when everything is opened, filtered and pointed at."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for target in page.locator("h1, summary, th, figure, article, td").all()[:60]:
        target.dispatch_event("mouseover")
        target.dispatch_event("focus")
    assert page.evaluate("window.ran === undefined && document.baseURI === location.href")
    assert (
        page.evaluate("document.querySelectorAll('iframe, base, xmp, plaintext, img, link:not([rel=icon])').length")
        == 0
    )
    assert not {"\x1b", "\x00", "\u202e"} & set(page.content())


def test_every_text_of_a_stranger_is_hostile_and_nothing_runs(visit, tmp_path):
    comparison = example()
    names = {run["label"]: f"{run['label']} {PAYLOADS[n % len(PAYLOADS)]}" for n, run in enumerate(comparison.runs)}
    topics = {topic: f"{topic} {PAYLOADS[-1 - n]}" for n, topic in enumerate(("race", "science", "immigration"))}
    comparison.title, comparison.on_topic = PAYLOADS[0], topics["immigration"]
    comparison.verdict, comparison.warnings = _hostile(comparison.verdict), _hostile(["a"] * len(PAYLOADS))
    for n, run in enumerate(comparison.runs):
        kept = {"label": names[run["label"]], "reference": names.get(run["reference"]), "role": run["role"]}
        run |= {key: _hostile(run[key], n) for key in ("path", "model", "engine", "versions", "command", "spec")}
        run |= {**kept, "machine": _hostile({"system": "x"}, n), "started": PAYLOADS[n % len(PAYLOADS)]}
    for frame in frames(comparison):
        for column, renamed in (("run", names), ("topic", topics)):
            if column in frame:
                frame[column] = frame[column].replace(renamed)
        for column in (
            {"format", "axis", "level", "label", "judges"} & set(frame.columns) if "split_half" in frame else ()
        ):
            frame[column] = _hostile(list(frame[column]))
    comparison.quality["judges"]["judges"] = _hostile(list(comparison.quality["judges"]["judges"]))
    comparison.quality["axes"]["level"] = _hostile(list(comparison.quality["axes"]["level"]))
    samples = comparison.samples
    for n, column in enumerate(("prompt", "answer", "item", "variant")):
        samples[column] = _hostile(list(samples[column]), n)
    samples["options"] = [json.dumps(_hostile(["l", "r"], n)) for n in range(len(samples))]
    located = comparison.localization
    for key in ("per_layer", "rank_correlation"):
        located[key] = {topics.get(topic, topic): found for topic, found in located[key].items()}
    located["overlap"] = {
        topics.get(a, a): {topics.get(b, b): v for b, v in row.items()} for a, row in located["overlap"].items()
    }
    page = visit(write_report(comparison, tmp_path))
    _field(page, "Topic").select_option(index=1)
    _field(page, "Search").fill("window.ran")
    _quiet(page)
    assert PAYLOADS[0] in page.locator("h1").inner_text()
    for drawing in (tmp_path / "figures").glob("*.svg"):
        assert visit(drawing).evaluate("window.ran === undefined")
    section = Section(
        "one",
        PAYLOADS[1],
        PAYLOADS[2],
        pd.DataFrame({PAYLOADS[3]: [PAYLOADS[4], PAYLOADS[10]], PAYLOADS[5]: [0.5, 1.0]}),
    )
    about = {payload: [payload] for payload in PAYLOADS}
    _quiet(visit(write_sheet(Sheet(PAYLOADS[6], PAYLOADS[7], PAYLOADS, (section,), about), tmp_path / "sheet")))


def test_a_script_from_elsewhere_does_not_run(browser, report, tmp_path):
    path = tmp_path / "index.html"
    html = report.read_text(encoding="utf-8")
    path.write_text(html.replace("<main", "<script>document.title = 'ran'</script><main", 1), encoding="utf-8")
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert page.title() != "ran" and any("Content Security Policy" in text for text in said)
    page.close()


def test_without_javascript_everything_is_there(visit, report, comparison):
    page = visit(report, java_script_enabled=False)
    assert page.locator("#explorer").is_hidden()
    page.locator("#static-samples > summary").click()
    assert page.locator("#static-samples article").count() == min(samples.SHOWN, len(_changes(comparison)))
    assert page.locator("#static-samples article").first.is_visible()


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 800}}]
)
def test_axe_finds_nothing(visit, report, context):
    assert _violations(visit(report, **context)) == []


def test_no_width_scrolls_sideways_and_screenshots_are_kept(visit, report, tmp_path):
    folder = Path(os.environ.get("STANCE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in WIDTHS.items():
        page = visit(report, viewport={"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=folder / f"report-{width}.png", full_page=True)
        page.close()
    page = visit(report, viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.screenshot(path=folder / "report-1280-dark.png", full_page=True)
    assert len(list(folder.glob("report-*.png"))) >= 4


def test_printing_opens_what_matters(visit, report):
    page = visit(report)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]):not(.samples)").count() == 0
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden() and page.locator(".filters").is_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 800}}]
)
def test_axe_finds_nothing_on_a_sheet(visit, tmp_path, context):
    from harness.report.figures import axes_at, canvas

    def draw(width):
        figure = canvas(width, 120)
        axes_at(figure, 40, 10, width - 60, 80).plot([0, 1], [0, 1])
        return figure

    table = pd.DataFrame(
        {"run": ["base", HOSTILE], "value": [0.5, -0.25], "value_low": [0.1, -0.5], "value_high": [0.9, 0.0]}
    )
    section = Section(
        "one",
        "A table",
        "What it means.",
        table,
        Picture("It rises", "From 0 to 1.", draw),
        {"value": ("value_low", "value_high")},
    )
    sheet = Sheet("A study", "What was found", ("One sentence.",), (section,), {"seed": 0, "spec": json.dumps([1])})
    page = visit(write_sheet(sheet, tmp_path), **context)
    assert _violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

"""The files beside the page: one number everywhere, nothing a model or a label says becomes code, and what others read."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
import types
from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from matplotlib.image import imread
from test_report import TOPICS, example, frames

from harness.cli import main
from harness.errors import InputError
from harness.quality import COLUMNS
from harness.report import content, tables, write_report
from harness.report.export import leading_tables, slug
from harness.report.figure_files import palette
from harness.report.latex import escape
from harness.report.sheet import Section, Sheet, write_sheet
from harness.report.svg import TOKENS
from harness.report.text_files import guarded
from harness.sharing import read_folder
from harness.sharing.inspect_log import write_log
from harness.sharing.trackers import to_trackio, to_wandb

CONTROLS = "".join(map(chr, [*range(1, 9), *range(14, 32), 127, 0x85, 0x9B]))
HOSTILE = f"=cmd|' /C calc'!A0 \\input{{x}} 50% $x_1$ #~^& a--b <script>alert(1)</script> [2]*{CONTROLS}--- `x`"
MAIN = {"summary": ("summary", "value"), "stance": ("stance", "value"), "shift": ("shifts", "shift")}
UNTEX = {r"\%": "%", "$-$": tables.MINUS, r"\textendash{}": tables.NONE, "{[}": "[", "{]}": "]", r"\_": "_"}

TABLE = (
    "begin end centering caption label resizebox ifdim width linewidth else fi toprule midrule bottomrule addlinespace"
)
TEXT = "textbf scriptsize textbackslash textasciitilde textasciicircum textless textgreater textbar textasciigrave"
OURS = {*TABLE.split(), *TEXT.split(), "textendash", "cdot"}


class _Tables(HTMLParser):
    """Caption -> rows of cell texts, as a browser reads them."""

    def __init__(self, html):
        super().__init__()
        self.found, self.caption, self.inside = {}, "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "caption":
            self.caption = ""
        elif tag == "tr":
            self.found.setdefault(self.caption, []).append([])
        elif tag in ("th", "td"):
            self.found[self.caption][-1].append("")
        self.inside = tag if tag in ("caption", "th", "td") else self.inside

    def handle_endtag(self, tag):
        self.inside = "" if tag == self.inside or tag in ("caption", "th", "td") else self.inside

    def handle_data(self, data):
        if self.inside == "caption":
            self.caption += data
        elif self.inside:
            self.found[self.caption][-1][-1] += data


def _from_markdown(report, caption):
    lines = report[report.index(caption) :].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines[2:]]


def _from_latex(text):
    """Rows of cells, value and interval together."""
    rows = []
    for line in text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines():
        if line.endswith(r" \\"):
            for tex, plain in UNTEX.items():
                line = line.replace(tex, plain)
            cells = [re.sub(r"^\{\\scriptsize (.*)\}$", r"\1", cell.strip()) for cell in line[:-3].split(" & ")]
            cells = [re.sub(r"^\\textbf\{(.*)\}$", r"\1", cell) for cell in cells][1:]
            if any(cell.startswith("[") for cell in cells) and all(cell[:1] in ("", "[") for cell in cells):
                rows[-1] = [f"{value} {interval}".strip() for value, interval in zip(rows[-1], cells, strict=True)]
            elif any(cells):
                rows.append(cells)
    return rows


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    comparison = example()
    out = write_report(comparison, tmp_path_factory.mktemp("exports")).parent
    return comparison, out, out.joinpath("index.html").read_text(encoding="utf-8")


def test_the_folder_holds_these_files(written):
    _, out, html = written
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    tex = {path.stem for path in out.glob("tables/*")}
    leading = {"summary", "stance", "shift", "tradeoff", "dose"}
    parts = {"neurons": ("overlap", "correlation"), "quality": tuple(COLUMNS), "rates": ("open", "statements")}
    assert tex == leading | {f"{part}-{name}" for part, names in parts.items() for name in names}
    drawn = {f"figures/{name}" for name in ("stance", "shift", "tradeoff", "dose", "layers")}
    assert {path for path in found if path.startswith("figures/")} == {
        f"{d}.{kind}" for d in drawn for kind in ("svg", "png")
    }
    cards = {"model-card.md", "model-card-inhibited-5.md", "model-card-inhibited-10.md"}
    data_frames = ("samples", "summary", "shifts", "stance", "rates", *COLUMNS)
    data = {"samples.parquet", "comparison.json", *(f"{name}.csv" for name in data_frames)}
    assert {path for path in found if not path.startswith(("tables/", "figures/"))} == cards | data | {
        "index.html",
        "report.md",
    }
    for link in re.findall(r'href="([a-z][^":#]*)"', html):
        assert (out / link).exists(), link


def test_page_markdown_latex_csv_and_json_agree_on_the_leading_measure(written):
    comparison, out, html = written
    page = _Tables(html).found
    report = (out / "report.md").read_text(encoding="utf-8")
    saved = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    for name, table in leading_tables(comparison).items():
        cells = [[str(cell) for cell in row.cells] for row in table.rows]
        assert [row[1:] for row in page[table.caption][1:]] == cells, name
        assert _from_markdown(report, tables.plain_text(table.caption)) == cells, name
        assert _from_latex((out / "tables" / f"{name}.tex").read_text(encoding="utf-8")) == cells, name
    kinds = {metric: kind for metric, _, kind in content.METRICS}
    for name, (file, key) in MAIN.items():
        shown = {str(cell) for row in leading_tables(comparison)[name].rows for cell in row.cells}
        lines = list(csv.DictReader((out / f"{file}.csv").open(encoding="utf-8")))
        rows = saved[file]
        assert len(lines) == len(rows) > 0
        written_cells = set()
        for line, row in zip(lines, rows, strict=True):
            kind = kinds[row["metric"]] if "metric" in row else "signed"
            texts = []
            for source in (line, row):
                numbers = [math.nan if source[k] in ("", None) else float(source[k]) for k in (key, "low", "high")]
                texts.append(
                    f"{tables.number(numbers[0], kind)} {tables.interval(numbers[1], numbers[2], kind)}".strip()
                )
            assert texts[0] == texts[1]
            if row["measure"] == comparison.headline:
                written_cells.add(texts[0])
        assert written_cells | {tables.NONE} == shown | {tables.NONE}, name


def test_csv_and_json_agree_on_rates_and_on_how_far_they_can_be_believed(written):
    comparison, out, _ = written
    saved = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    for name, frame in ({"rates": comparison.rates} | comparison.quality).items():
        rows = saved["rates"] if name == "rates" else saved["quality"][name]
        lines = list(csv.DictReader((out / f"{name}.csv").open(encoding="utf-8")))
        assert len(lines) == len(rows) == len(frame) > 0
        for line, row in zip(lines, rows, strict=True):
            numeric = {key for key, value in row.items() if isinstance(value, int | float)}
            assert {key: float(line[key]) for key in numeric} == {key: row[key] for key in numeric}, name
            assert all(line[key] == (row[key] or "") for key in row.keys() - numeric), name


def test_parquet_equals_csv_and_is_typed(written):
    comparison, out, _ = written
    read = pq.read_table(out / "samples.parquet")
    types = {field.name: str(field.type) for field in read.schema}
    assert types == {name: "double" if name == "value" else "string" for name in comparison.samples.columns}
    pd.testing.assert_frame_equal(
        read.to_pandas().astype(object).where(lambda frame: frame.notna(), None),
        pd.read_csv(out / "samples.csv").astype(object).where(lambda frame: frame.notna(), None),
    )


def test_a_carriage_return_in_an_answer_ends_no_row(tmp_path):
    comparison = example({"base": "base", "plain": "tuned"}, localized=False)
    comparison.samples["answer"] = 'one\rtwo "three", four\nfive'
    write_report(comparison, tmp_path)
    for read in (pd.read_csv(tmp_path / "samples.csv"), pq.read_table(tmp_path / "samples.parquet").to_pandas()):
        assert len(read) == len(comparison.samples)
        assert set(read["answer"]) == {'one\rtwo "three", four\nfive'}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    roles = {"base": "base", "base-again": "noise", "plain": "tuned", "held": "inhibited", "random": "control"}
    comparison = example(roles)
    comparison.title = comparison.verdict[0] = comparison.warnings[0] = HOSTILE
    comparison.runs[2]["label"] = comparison.runs[2]["model"] = HOSTILE
    for frame in frames(comparison):
        if "run" in frame:
            frame.loc[frame["run"] == "plain", "run"] = HOSTILE
        if "topic" in frame:
            frame["topic"] = frame["topic"].replace("race", HOSTILE)
    comparison.localization["rank_correlation"] = {HOSTILE: 0.5}
    comparison.localization["per_layer"][HOSTILE] = comparison.localization["per_layer"].pop("race")
    comparison.samples["answer"] = HOSTILE
    comparison.samples["answer"] = pd.Series(["\ud800 lone", *comparison.samples["answer"][1:]], dtype=object)
    return write_report(comparison, tmp_path_factory.mktemp("attacked")).parent


def test_hostile_text_in_csv_parquet_and_json(attacked):
    for path in attacked.glob("*.csv"):
        for row in csv.reader(path.open(encoding="utf-8", newline="")):
            assert not any(cell.startswith(("=", "@", "\t", "\r")) for cell in row)
    read = pq.read_table(attacked / "samples.parquet").to_pandas()
    assert read["answer"][0] == "? lone" and read["answer"][1] == HOSTILE
    guarded_ = pd.read_csv(attacked / "samples.csv")
    assert guarded_["answer"][0] == "? lone" and guarded_["answer"][1] == f"'{HOSTILE}"
    assert [guarded(text) for text in ("\n=1", "\uff1d1", "a")] == ["'\n=1", "'\uff1d1", "a"]
    raw = (attacked / "comparison.json").read_text(encoding="utf-8")
    assert json.loads(raw)["title"] == HOSTILE and not re.search(r"[\x00-\x09\x0b-\x1f]", raw)


def test_hostile_text_in_markdown_html_and_cards(attacked):
    for path in (attacked / "report.md", attacked / "index.html", *attacked.glob("model-card*.md")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), path.name
        body = text.split("\n---\n", 1)[1] if path.name.startswith("model") else text
        assert "<script>alert" not in body, path.name


def test_hostile_text_in_latex(attacked):
    text = (attacked / "tables" / "summary.tex").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("=cmd"))
    assert (
        r"\textbar{}' /C calc'!A0 \textbackslash{}input\{x\} 50\% \$x\_1\$ \#\textasciitilde{}\textasciicircum{}\&"
        in row
    )
    assert (
        r"a-{}-b \textless{}script\textgreater{}" in row
        and "{[}2{]}{*}" in row
        and "-{}-{}- \\textasciigrave{}x" in row
    )
    for path in (attacked / "tables").glob("*.tex"):
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        columns = next(re.search(r"l(r+)@", line) for line in lines if "{tabular}{" in line)
        rows = [line for line in lines if line.endswith(r" \\")]
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) for row in rows), path.name
        whole = " ".join(lines)
        assert first.startswith("% Needs") and whole.isprintable()
        assert set(re.findall(r"\\([A-Za-z]+)", whole)) <= OURS, path.name
        bare = re.sub(r"\\[{}]", "", whole)
        assert bare.count("{") == bare.count("}"), path.name


def test_escape_by_hand():
    assert escape(f"a_b & 50% {tables.MINUS}0.1 {tables.NONE}") == r"a\_b \& 50\% $-$0.1 \textendash{}"
    assert escape("two\nlines\x00\x1b") == "two lines??"
    assert escape("well-known ----") == "well-known -{}-{}-{}-"


def test_svg_stands_alone_and_png_is_twice_as_large(written, attacked):
    _, out, _ = written
    for path in (*(out / "figures").glob("*.svg"), *(attacked / "figures").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)  # control characters would not parse
        assert "var(" not in text and "currentColor" not in text
        left = set(re.findall("#[0-9a-f]{6}", text)) & set(TOKENS.values())
        assert left <= set(palette().values()), path.name
        names = {element.tag.rsplit("}")[-1] for element in root.iter()}
        assert not names & {"script", "text", "image", "a", "foreignObject"}
        first = next(element for element in root.iter() if element.tag.endswith("path"))
        assert "#ffffff" in first.get("style", "")
        width = float(root.get("width", "0pt").removesuffix("pt"))
        picture = imread(path.with_suffix(".png"))
        assert picture.shape[1] == round(2 * width) == 1720
        assert picture[0, 0, :3].tolist() == [1, 1, 1]
    drawn = (out / "figures" / "shift.svg").read_text(encoding="utf-8")
    colours = {name: palette()[token] for name, token in TOKENS.items()}
    assert all(colours[role] in drawn for role in ("tuned", "inhibited", "control", "patched", "noise", "muted"))
    assert colours["tuned"] == "#cc8400" and "#e69f00" not in drawn


def _front(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\n")
    front, body = text[4:].split("\n---\n", 1)
    (index,) = yaml.safe_load(front)["model-index"]
    return index, body


def test_model_card_is_what_the_hub_reads_and_says_what_the_page_says(written):
    from huggingface_hub.repocard_data import ModelCardData, model_index_to_eval_results

    comparison, out, html = written
    index, body = _front(out / "model-card.md")
    assert index["name"] == "SmolLM2-135M-Instruct"
    name, results = model_index_to_eval_results([index])
    assert ModelCardData(model_name=name, eval_results=results).to_dict()["model-index"][0]["name"] == name
    text = " ".join(cell for rows in _Tables(html).found.values() for row in rows for cell in row)
    for result in index["results"]:
        assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        for metric in result["metrics"]:
            assert set(metric) == {"name", "type", "value"} and isinstance(metric["value"], float)
            kind = {m: k for m, _, k in content.METRICS}.get(metric["type"], "signed")
            assert tables.number(metric["value"], kind) in text
    by_topic = {result["dataset"].get("config"): result["metrics"] for result in index["results"]}
    assert set(by_topic) == {*TOPICS, None}
    assert [metric["type"] for metric in by_topic["immigration"]] == ["stance", "shift"]
    assert by_topic["immigration"][1]["value"] == -0.412
    where = {"run": "plain", "topic": "immigration", "measure": comparison.headline}
    (row,) = content.records(comparison.shifts, **where)
    assert f"95% interval {row['low']:.3f} to {row['high']:.3f}" in by_topic["immigration"][1]["name"]
    assert "Noise floor" in body and "random-5" in body and "Limits:" in body and "n = 50 items per topic" in body
    held = _front(out / "model-card-inhibited-5.md")[1]
    assert "with neurons held" in held and "less what holding random neurons did: +3.1 pp" in held


def test_hostile_model_card_parses(attacked):
    index, body = _front(attacked / "model-card.md")
    assert "<script>" in index["name"] and "\n" not in index["name"] and "&lt;script&gt;" in body
    assert {path.name for path in attacked.glob("model-card*")} == {"model-card.md", "model-card-held.md"}


def test_what_was_not_measured_is_said_and_undefined_metrics_are_left_out(tmp_path):
    comparison = example({"base": "base", "held": "inhibited"}, localized=False)
    comparison.stance.loc[comparison.stance["topic"] == "race", ["value", "low", "high"]] = math.nan
    write_report(comparison, tmp_path)
    index, body = _front(tmp_path / "model-card.md")
    assert "Noise floor" in body and "not measured" in body and "Random control: none was measured" in body
    (race,) = [result for result in index["results"] if result["dataset"].get("config") == "race"]
    assert [metric["type"] for metric in race["metrics"]] == ["shift"]
    assert next(line for line in body.splitlines() if line.startswith("| Race")).count(f" {tables.NONE} |") == 2


def test_files_of_an_earlier_report_do_not_stay(tmp_path):
    write_report(example({"base": "base", "plain": "tuned"}), tmp_path)
    assert (tmp_path / "figures" / "layers.svg").exists() and (tmp_path / "model-card.md").exists()
    (tmp_path / "tables" / "mine.tex").write_text("kept")
    write_report(example({"base": "base", "after": "other"}, localized=False), tmp_path)
    assert not list(tmp_path.glob("model-card*")) and not (tmp_path / "figures" / "layers.svg").exists()
    assert not list((tmp_path / "tables").glob("neurons*")) and (tmp_path / "tables" / "mine.tex").exists()


def test_slug_is_a_safe_file_name():
    assert slug("inhibited-5%") == "inhibited-5" and slug("../../etc") == "etc" and slug("..") == "unnamed"
    assert len(slug("x" * 300)) == 60


@pytest.mark.parametrize(("tool", "package"), [("inspect", "inspect_ai"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_missing_library_is_named_with_its_command(written, tmp_path, monkeypatch, tool, package):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["share", tool, str(written[1]), *(["--out", str(tmp_path / "log.json")] if tool == "inspect" else [])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and f"package {package}, which is not installed" in result.output
    assert f"pip install {package}" in result.output


def test_folders_that_cannot_be_shared(written, tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        read_folder(tmp_path / "absent")
    for name in ("comparison.json", "samples.parquet"):
        with pytest.raises(
            InputError, match="holds no comparison" if name == "comparison.json" else "no samples.parquet"
        ):
            read_folder(tmp_path)
        shutil.copy(written[1] / name, tmp_path / name)
    assert read_folder(tmp_path).headline == "pairs.nats"
    for text, words in (
        ("{", "not readable JSON"),
        ("[]", "holds a JSON list"),
        ('{"title": "x"}', "`headline`: Field required; `verdict`"),
    ):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(InputError, match=words):
            read_folder(tmp_path)


class _Tracker(types.ModuleType):
    """What both trackers are asked to do, written down."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__("tracker")
        self.opened, self.logged, self.summary, self.finished = [], [], {}, 0
        self.Table = lambda dataframe: dataframe
        self.Settings = dict

    def init(self, **options):
        self.opened.append(options)
        self.summary = {}
        return self

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("tool", ["wandb", "trackio"])
def test_trackers_get_a_run_each_with_the_numbers_of_every_measure(written, monkeypatch, tool):
    comparison, out, _ = written
    fake = _Tracker()
    monkeypatch.setitem(sys.modules, tool, fake)
    shared = read_folder(out)
    assert (to_wandb if tool == "wandb" else to_trackio)(shared, "mine") == len(comparison.runs) == fake.finished
    assert [options["name"] for options in fake.opened] == [run["label"] for run in comparison.runs]
    assert {options["group"] for options in fake.opened} == {comparison.title}
    assert fake.opened[2]["config"]["role"] == "tuned" and not any("mode" in options for options in fake.opened)
    sent = fake.summary if tool == "wandb" else fake.logged[-1]
    last = comparison.runs[-1]["label"]
    assert sent["pairs.nats/shift/immigration"] == pytest.approx(-0.412)
    for measure in comparison.measures:
        for row in content.records(comparison.summary, run=last, measure=measure):
            assert sent.get(f"{measure}/{row['metric']}") == (None if math.isnan(row["value"]) else row["value"])
    assert all(isinstance(value, float) and math.isfinite(value) for name, value in sent.items() if name != "samples")
    answers = fake.logged[-1]["samples"]
    assert len(answers) == (comparison.samples["run"] == last).sum() and None in list(answers["value"])
    if tool == "wandb":
        to_wandb(shared, "mine", offline=True)
        assert fake.opened[-1]["mode"] == "offline"


def test_a_tracker_s_refusal_is_an_input_error(written, monkeypatch):
    fake = _Tracker()
    fake.init = lambda **options: (_ for _ in ()).throw(fake.Error("no login"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(InputError, match=r"run base .no login.*--offline"):
        to_wandb(read_folder(written[1]), "mine")


def test_inspect_reads_its_log(written, tmp_path):
    inspect_log = pytest.importorskip("inspect_ai.log")
    comparison, out, _ = written
    for name in ("log.json", "log.eval"):
        log = inspect_log.read_eval_log(str(write_log(read_folder(out), tmp_path / name)))
        assert log.status == "success" and len(log.samples) == 54
        scores = {score.name: score for score in log.results.scores}
        assert scores["plain"].metrics["shift/immigration"].value == pytest.approx(-0.412)
        found = {(sample.id, run): score.value for sample in log.samples for run, score in sample.scores.items()}
        for row in content.records(comparison.samples):
            value = found["/".join((row["topic"], row["format"], row["item"], row["variant"])), row["run"]]
            assert value == pytest.approx(row["value"], nan_ok=True)
        undefined = comparison.samples.loc[comparison.samples["run"] == "plain", "value"].isna().sum()
        assert scores["plain"].unscored_samples == undefined > 0
    with pytest.raises(InputError, match="Inspect reads"):
        write_log(read_folder(out), tmp_path / "log.txt")


def test_a_partial_run_is_marked_on_everything_that_travels_alone(tmp_path):
    comparison = example()
    note = "Partial, only some of the items were asked: inhibited-10"
    out = write_report(comparison, tmp_path / "partial").parent
    for file in out.glob("tables/*.tex"):
        assert (note in file.read_text()) == (not file.stem.startswith("neurons")), file.name
    for file in ("index.html", "report.md", *(path.name for path in out.glob("model-card*.md"))):
        assert "partial run" in (out / file).read_text().lower(), file
    drawn = {path.name: path.read_bytes() for path in out.glob("figures/*.svg")}
    for run in comparison.runs:
        run["partial"] = False
    whole = write_report(comparison, tmp_path / "whole").parent
    assert not any("Partial" in path.read_text() for path in whole.glob("tables/*.tex"))
    assert drawn and all((whole / "figures" / name).read_bytes() != data for name, data in drawn.items())


def test_a_partial_study_says_so_on_its_page_in_markdown_and_in_json(tmp_path):
    for limit, said in ((None, False), (8, True), ({"pairs": 4}, True)):
        out = write_sheet(Sheet("A study", "kind", ("One.",), (), {}, limit), tmp_path / str(limit)).parent
        for name in ("index.html", "report.md", "findings.json"):
            assert ("Partial: at most" in (out / name).read_text()) == said, (name, limit)


def test_a_studys_csv_holds_no_formula_and_its_pages_no_escape(tmp_path):
    table = pd.DataFrame({"=name": ["=1+1", "@x", "\x1b[31mred", "plain"], "value": [-1.5, 2.0, 3.0, 4.0]})
    out = write_sheet(Sheet("\x1b[2J\u202e", "kind", (), (Section("one", "A table", "", table),)), tmp_path).parent
    rows = list(csv.reader((out / "one.csv").open(encoding="utf-8")))
    assert rows[0] == ["'=name", "value"] and [row[0] for row in rows[1:3]] == ["'=1+1", "'@x"] and rows[1][1] == "-1.5"
    for name in ("index.html", "report.md"):
        assert not {"\x1b", "\u202e"} & set((out / name).read_text())
    assert r"\x1b[2J\u202e" in (out / "index.html").read_text()

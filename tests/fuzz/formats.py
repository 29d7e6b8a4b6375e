"""Every format that the tool reads: valid files to start from, and the code that reads them, to its end."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fuzz.damage import Files

from harness.errors import InputError

ROOT = Path(__file__).parent.parent.parent
WORKING = Path(tempfile.gettempdir()) / f"stance-fuzz-{os.getpid()}"


@dataclass(frozen=True)
class Format:
    """`seeds`: valid inputs, the main file first. `read`: reads the files of a folder, whose name is new each time."""

    name: str
    seeds: Callable[[], list[Files]]
    read: Callable[[Path], object]


FORMATS: dict[str, Format] = {}
atexit.register(shutil.rmtree, WORKING, ignore_errors=True)


def format_of(
    name: str, seeds: Callable[[], list[Files]]
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Declares the function as the reader of a format."""

    def declared(read: Callable[[Path], object]) -> Callable[[Path], object]:
        FORMATS[name] = Format(name, cache(seeds), read)
        return read

    return declared


def rows(name: str, *held: dict[str, Any]) -> Files:
    return {name: "".join(json.dumps(row) + "\n" for row in held).encode()}


def main(folder: Path) -> Path:
    """The file that is read: the one whose name does not begin with a part of another's."""
    return next(
        path for path in sorted(folder.iterdir(), key=lambda p: (p.suffix not in (".yaml", ".csv", ".txt"), p.name))
    )


# --- topics and experiments ---------------------------------------------------------------------------------------------


def _topics() -> list[Files]:
    from harness.topics.new import new_topic

    with tempfile.TemporaryDirectory() as folder:
        template = new_topic("climate", Path(folder)).read_bytes()
    head, _, _ = template.decode().partition("\nitems:")
    item = {"id": "a", "split": "measure", "sub_issue": "x", "question": "Why is it so?", "left": "l", "right": "r"}
    choice = {"id": "c", "sub_issue": "x", "question": "Which one?", "options": ["A", "B"], "values": [-1, 1]}
    beside = {"topic.yaml": f"{head}\nitems: t.items.jsonl\nchoices: t.choices.jsonl\n".encode()}
    return [
        {"topic.yaml": template},
        beside | rows("t.items.jsonl", item, {**item, "id": "b"}) | rows("t.choices.jsonl", choice),
    ]


@format_of("topic", _topics)
def _topic(folder: Path) -> None:
    from harness.probes import ROWS
    from harness.topics import load_topic
    from harness.topics.check import check_topic

    topic = load_topic(folder / "topic.yaml")
    for kind in topic.formats:
        assert json.dumps(ROWS[kind](topic), ensure_ascii=False).encode()
    check_topic(folder / "topic.yaml", [])


def _experiments() -> list[Files]:
    return [{"study.yaml": path.read_bytes()} for path in sorted((ROOT / "experiments").glob("*.yaml"))]


@format_of("experiment", _experiments)
def _experiment(folder: Path) -> None:
    from harness.experiment_file import opened

    study = opened(folder / "study.yaml")
    assert study.folder(None).parent == Path("reports")
    study.settings.model_dump_json()


RECIPE = (
    b"mode: lora\nepochs: 2\nlearning_rate: 1.0e-4\nbatch_size: 4\nrank: 8\nonly: ['*.mlp.*']\nprecision: float32\n"
)


@format_of("recipe", lambda: [{"recipe.yaml": RECIPE}])
def _recipe(folder: Path) -> None:
    from harness.training_data import recipe_from

    recipe_from(folder / "recipe.yaml", {}).model_dump_json()


# --- records -----------------------------------------------------------------------------------------------------------


@format_of("training", lambda: [rows("a.jsonl", *({"prompt": f"Why {n}?", "completion": "So."} for n in range(3)))])
def _training(folder: Path) -> None:
    from harness.finetune import measured_prompts_in, read_pairs

    measured_prompts_in(read_pairs(folder / "a.jsonl"), {"a": "Why 1?"})


IDEOINST = [
    {"instruction": f"Why {n}?", "left": "Yes.", "right": "No.", "left_label": "left", "right_label": "x"}
    for n in range(4)
]


@format_of("ideoinst", lambda: [rows("race.jsonl", *IDEOINST) | rows("Science 2.jsonl", *IDEOINST[:3])])
def _ideoinst(folder: Path) -> None:
    _converted(folder)


def _converted(data: Path) -> None:
    from harness.probes import ROWS
    from harness.sources import convert
    from harness.topics import find_topics

    with tempfile.TemporaryDirectory(dir=WORKING) as made:
        for topic in find_topics([convert(data, Path(made))]).values():
            for kind in topic.formats:
                assert ROWS[kind](topic)


STATEMENTS = b"# mine\nleft: The rich pay too little.\n\nRight:\tOrder matters most.\nright: Borders need guards.\n"
CHOICES = [
    {
        "question": "How much?",
        "options": ["Less", "More", "Refused"],
        "values": [-1, 1, None],
        "id": "a",
        "sub_issue": "b",
    }
]
CHOICES_CSV = b'question,options,values,id\nHow much?,Less|More|Refused,-1|1|,a\n"Why, so?",A|B,1|-1,b\n'
PAIRS = [{"prompt_a": "Defend the tax.", "prompt_b": "Attack the tax.", "topic": "tax", "kind": "advice", "id": "x"}]
PAIRS_CSV = b"left,right,kind\nPraise it now.,Blame it now.,writing\nPraise it.,Blame it.,opinion\n"


def single(name: str) -> Callable[[Path], object]:
    return lambda folder: _converted(folder / name)


format_of("statements", lambda: [{"a.txt": STATEMENTS}])(single("a.txt"))
format_of("choices", lambda: [rows("a.jsonl", *CHOICES, {**CHOICES[0], "id": "b"})])(single("a.jsonl"))
format_of("choices-csv", lambda: [{"a.csv": CHOICES_CSV}])(single("a.csv"))
format_of("pairs", lambda: [rows("a.jsonl", *PAIRS, {**PAIRS[0], "id": "y"})])(single("a.jsonl"))
format_of("pairs-csv", lambda: [{"a.csv": PAIRS_CSV}])(single("a.csv"))


@format_of("labelled", lambda: [rows("race.jsonl", *IDEOINST)])
def _labelled(folder: Path) -> None:
    from harness.judges.calibration import _own_label, read_labelled

    for held in read_labelled(folder).values():
        assert all(_own_label(row.get("left_label")) in ("", "left", "right") for row in held)


@format_of(
    "neutral-text", lambda: [rows("a.jsonl", {"id": "n1", "text": "Rivers run."}, {"id": "n2", "text": "[1, 2]"})]
)
def _neutral(folder: Path) -> None:
    from harness.lmeval.text import _texts

    _texts(folder / "a.jsonl")


def _packaged(name: str, count: int) -> list[Files]:
    return [{"a.jsonl": b"\n".join((ROOT / "tasks" / name).read_bytes().split(b"\n")[:count]) + b"\n"}]


@format_of("vignettes", lambda: _packaged("knobe/vignettes.jsonl", 3))
def _vignettes(folder: Path) -> None:
    from plugins.knobe_vignettes import load_vignettes

    assert all(one.span >= 0 and one.prompt("harm") for one in load_vignettes(folder / "a.jsonl"))


@format_of("culture", lambda: _packaged("culture/brazil.jsonl", 3))
def _culture(folder: Path) -> None:
    from plugins.culnig_items import read_questions

    assert all(question.prompt.encode() for question in read_questions(folder / "a.jsonl"))


ORIGINALS = (
    b'text,question,condition\nA harms.,How much?,harm\nA helps.,How much?,help\n"B, too.",Why?,help\nB.,Why?,harm\n'
)


@format_of("originals-csv", lambda: [{"a.csv": ORIGINALS}])
def _originals(folder: Path) -> None:
    from plugins.knobe_originals import load_originals

    assert all(pair.prompt("harm") for pair in load_originals(folder / "a.csv"))


CONCEPTS = [{"text": f"{word} {n}", "label": word} for word in ("red", "blue") for n in range(4)]
CONCEPTS_CSV = "text,label,split\n" + "".join(
    f"{r['text']},{r['label']},{'train' if n % 4 else 'measure'}\n" for n, r in enumerate(CONCEPTS)
)


@format_of("concepts", lambda: [rows("a.jsonl", *CONCEPTS), {"a.csv": CONCEPTS_CSV.encode()}])
def _concepts(folder: Path) -> None:
    from plugins.neuronlens_concepts import file_task

    file_task(main(folder)).chosen("train", 2)


# --- judges ------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "STANCE_JUDGE_PER_MINUTE": "30",
    "STANCE_JUDGE_PARALLEL": "2",
    "STANCE_JUDGE_TIMEOUT": "1.5",
    "STANCE_JUDGE_CACHE": "0",
}
SETTINGS |= {
    "STANCE_JUDGE_PRICE_IN": "1",
    "STANCE_JUDGE_PRICE_OUT": "2",
    "STANCE_JUDGE_MOST_DOLLARS": "3",
    "STANCE_JUDGE_KEY": "sk-1",
}
JUDGE = {"judge": "embedded,endpoint:m@http://127.0.0.1:9/v1", "settings": SETTINGS}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    try:
        for name, value in values.items():
            whole, text = (part.encode("utf-8", "replace").decode() for part in (name, value))
            if whole.startswith(("STANCE_", "OPENAI_")) and "=" not in whole and "\0" not in whole + text:
                os.environ[whole] = text
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@format_of("judge-settings", lambda: [{"a.json": json.dumps(JUDGE).encode()}])
def _judge(folder: Path) -> None:
    from harness import judges
    from harness.judges.settings import EndpointSettings, key_from_environment

    try:
        given = json.loads((folder / "a.json").read_bytes())
        texts = {str(name): str(value) for name, value in dict(given["settings"]).items()}
        spec = str(given["judge"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("no settings to try") from error
    with environment({**texts, "STANCE_CACHE": str(WORKING / "cache")}):
        EndpointSettings.from_environment().dollars(10, 10)
        key_from_environment()
        for name in judges.names(spec):
            if not name.startswith("local"):
                judges.check(name)


def _cache_file() -> list[Files]:
    from harness.judges.cache import LabelCache

    with tempfile.TemporaryDirectory() as folder:
        kept = LabelCache(Path(folder) / "labels.sqlite")
        kept.add("a", "left")
        kept.close()
        return [{"labels.sqlite": (Path(folder) / "labels.sqlite").read_bytes()}]


@format_of("label-cache", _cache_file)
def _labels(folder: Path) -> None:
    from harness.judges.cache import LabelCache

    kept = LabelCache(folder / "labels.sqlite")
    try:
        assert all(isinstance(label, str) for label in kept.known(["a", "b"]).values())
        kept.add("b", "right")
    finally:
        kept.close()


REPLY = {
    "id": "x",
    "choices": [{"message": {"role": "assistant", "content": "left"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1},
}


@format_of("endpoint-reply", lambda: [{"a.json": json.dumps(REPLY).encode()}])
def _reply(folder: Path) -> None:
    from harness.judges.chat import Chat, _Failed, _seconds
    from harness.judges.endpoint import as_label
    from harness.judges.rules import MEANING
    from harness.judges.settings import EndpointSettings

    received = (folder / "a.json").read_bytes()
    settings = EndpointSettings(price_in=1.0, price_out=1.0)
    _seconds(received[:40].decode("latin-1"))
    try:
        completion = Chat("http://127.0.0.1:9/v1", "sk-secret-key", settings)._completion(received)
    except _Failed as failed:
        assert failed.came.isprintable() and len(failed.came) < 400
        raise InputError(failed.came) from None
    assert as_label(completion.text) in {*MEANING, "unparsed"}
    assert 0 <= settings.dollars(completion.tokens_in, completion.tokens_out) < 1e6


# --- models, adapters, neurons -----------------------------------------------------------------------------------------


@cache
def tiny_model() -> Path:
    import tiny

    folder = WORKING / "tiny"
    folder.mkdir(parents=True)
    tiny.save(tiny.build("llama", num_hidden_layers=2), folder)
    return folder


def _neurons_file() -> list[Files]:
    from harness.neurons import Neurons

    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        Neurons(mask, "mlp_act", "f" * 64, mask.float()).save(path)
        return [{"a.safetensors": path.read_bytes()}]


@format_of("neurons", _neurons_file)
def _neurons(folder: Path) -> None:
    from harness.neurons import Neurons

    found = Neurons.load(folder / "a.safetensors")
    assert found.per_layer and (found | found).jaccard(found) == 1.0
    if len(found) and found.scores is not None:
        found.top(0.5)
    found.check_model(6, 2, ["f" * 64])


def _adapter_files() -> list[Files]:
    import peft

    from harness.models import load_model

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(load_model(str(tiny_model())), config)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return [
            {name: (Path(folder) / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
        ]


@format_of("adapter", _adapter_files)
def _adapter(folder: Path) -> None:
    import warnings

    from harness.adapters import check_adapter, merged
    from harness.models import load_model

    check_adapter(folder, str(tiny_model()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged(load_model(str(tiny_model())), folder)


@format_of("model-config", lambda: [{"config.json": (tiny_model() / "config.json").read_bytes()}])
def _config(folder: Path) -> None:
    from harness.models import load_config, resolve
    from harness.sites import width_by_config

    (folder / "model.safetensors").write_bytes((tiny_model() / "model.safetensors").read_bytes()[:64])
    width_by_config(load_config(resolve(str(folder))).get_text_config(), "mlp_act")


# --- runs and comparisons ----------------------------------------------------------------------------------------------


def _samples() -> pd.DataFrame:
    texts = ("task", "topic", "item", "variant", "side", "sub_issue", "question", "prompt", "prompt_hash", "answer")
    held = []
    for kind, values in (("pairs", {"nats": 0.5, "stance": 1.0}), ("open", {"stance": -1.0, "left": 1.0})):
        for topic in ("race", "science"):
            for n in range(3):
                row = dict.fromkeys(texts, "x") | {
                    "topic": topic,
                    "item": f"{topic}{n}",
                    "format": kind,
                    "control": False,
                }
                row |= {"values": json.dumps(values), "labels": '{"embedded": "left"}' if kind == "open" else "{}"}
                held.append(row | {"axes": '{"framing": "neutral"}', "options": '["l", "r"]'})
    return pd.DataFrame(held)


def _measured(folder: Path, label: str) -> Path:
    from harness.runs import open_run, save_measurement

    about = {"model": "m", "engine": "torch", "limit": None, "on_topic": "race", "reference": "base"}
    run = open_run(folder / label, "measure", {"label": label, "role": "base" if label == "base" else "tuned", **about})
    save_measurement(run, {"results": {}}, _samples())
    return run.path


@cache
def base_run() -> Path:
    return _measured(WORKING / "runs", "base")


def _run_files() -> list[Files]:
    with tempfile.TemporaryDirectory() as folder:
        path = _measured(Path(folder), "tuned")
        manifest = json.loads((path / "manifest.json").read_bytes())
        older = {key: value for key, value in manifest.items() if key not in ("checksum", "files")} | {"schema": 2}
        files = {name: (path / name).read_bytes() for name in ("samples.parquet", "results.json")}
        whole = {"manifest.json": (path / "manifest.json").read_bytes(), **files}
        return [{"manifest.json": json.dumps(older).encode(), **files}, whole]


@format_of("run", _run_files)
def _run(folder: Path) -> None:
    """Half of the seeds keep no checksums, so that what lies behind them is reached."""
    import warnings

    from harness.compare import compare, load_runs
    from harness.report import content
    from harness.report.page import render

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compared = compare(load_runs([base_run(), folder]))
        content.summary(compared, compared.headline)
        if len(compared.samples) % 5 == 0:
            render(compared)


def _comparison_files() -> list[Files]:
    from harness.compare import compare, load_runs
    from harness.report import export

    with tempfile.TemporaryDirectory() as folder:
        made = compare(load_runs([base_run(), _measured(Path(folder), "tuned")]))
        export.write_comparison(made, Path(folder) / "comparison.json")
        export.write_parquet(made, Path(folder) / "samples.parquet")
        return [{name: (Path(folder) / name).read_bytes() for name in ("comparison.json", "samples.parquet")}]


@format_of("comparison", _comparison_files)
def _comparison(folder: Path) -> None:
    from harness.moved import moved_most
    from harness.sharing import read_folder
    from harness.sharing.trackers import _about, _answers, _flat

    shared = read_folder(folder)
    for run in shared.comparison["runs"]:
        _about(shared, run), _flat(shared, run["label"]), _answers(shared, run["label"])
    moved_most(shared, None, None, (), 3).as_json()


LOCATED = {
    "schema": 1, "per_layer": {"general": [1, 2], "race": [0, 1]}, "rank_correlation": {"race": 0.5},
    "overlap": {"race": {"race": 1.0}},
    "site": "mlp_act", "token_kind": "prompt", "tokens": {"race": 40}, "top": 30.0, "normalized": False,
    "general": 3, "selected": 9, "general_share": 0.9, "stability": 0.8, "layers": 2, "width": 6,
}  # fmt: skip


@format_of("localization", lambda: [{"localization.json": json.dumps(LOCATED).encode()}])
def _localization(folder: Path) -> None:
    from types import SimpleNamespace

    from harness.report.export import neuron_tables
    from harness.report.findings import layer_finding
    from plugins.pnlac_report import read

    found = read(folder)
    neuron_tables(SimpleNamespace(localization=found))  # type: ignore[arg-type]
    layer_finding(found)

"""What a person types: every wrong input is one paragraph and exit code 2, before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner, Result

from harness.cli import main
from harness.neurons import Neurons
from harness.training_data import named_topics, training_questions


def stance(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def refused(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    text = result.output.strip()
    assert "Traceback" not in text and len(text.splitlines()) == 1, text
    assert all(fragment in text for fragment in fragments), text


@pytest.fixture
def llama(folder: Callable[..., str]) -> str:
    return folder("llama", chat=True)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in tiny.PAIRS))
    return path


def test_eval_refuses_unknown_names(llama: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "r")]
    refused(stance("eval", "--model", "nobody", *out), "no model 'nobody'", "smollm2-135m-instruct")
    refused(stance("eval", "--model", llama, "--tasks", "political_stance_rice", *out), "political_stance_race")
    refused(stance("eval", "--model", llama, "--judge", "oracle", *out), "judges: embedded")
    refused(stance("eval", "--model", llama, "--limit", "0", *out), "--limit is 0")
    refused(stance("eval", "--model", llama, "--op", "double", *out), "`zero`, `scale=X`")
    refused(stance("eval", "--model", llama, "--op", "zero", *out), "go together")
    refused(stance("eval", "--model", llama, "--topics-dir", "nowhere", *out), "nowhere")


def test_eval_refuses_neurons_of_another_model(llama: str, tmp_path: Path) -> None:
    neurons = tmp_path / "n.safetensors"
    model = tiny.build("llama")
    tiny.some_neurons(model, "mlp_act", made_in="other").save(neurons)
    arguments = ["eval", "--model", llama, "--neurons", str(neurons), "--op", "zero", "--out", str(tmp_path / "r")]
    refused(stance(*arguments), "found in a model with weights other")
    wide = tiny.build("llama", intermediate_size=64)
    tiny.some_neurons(wide, "mlp_act", made_in="other").save(neurons)
    refused(stance(*arguments), "3 layers x 64", "3 x 48")
    neurons.write_bytes(b"\x80\x04pickle")
    refused(stance(*arguments), "not a readable safetensors file")


def test_eval_refuses_an_adapter_of_another_model(
    llama: str, tmp_path: Path, pairs: Path, folder: Callable[..., str]
) -> None:
    adapter = tmp_path / "adapter"
    made = stance(
        "tune",
        "--model",
        llama,
        "--data",
        str(pairs),
        "--epochs",
        "1",
        "--learning-rate",
        "1e-2",
        "--out",
        str(adapter),
    )
    assert made.exit_code == 0, made.output
    other = folder("qwen2", chat=True)
    refused(
        stance("eval", "--model", other, "--adapter", str(adapter), "--out", str(tmp_path / "r")),
        "was trained on weights",
    )
    refused(stance("eval", "--model", str(adapter), "--out", str(tmp_path / "r")), "pass it with --adapter")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"', "line 2 is not JSON"),
        ('{"prompt": "a"}', "record 1 has keys prompt"),
        ('{"prompt": "a", "completion": ""}', "record 1"),
        ('{"prompt": "a", "completion": "b", "label": 1}', "expected exactly"),
        ("[1]", "line 1 holds a list"),
    ],
)
def test_tune_refuses_malformed_data(llama: str, tmp_path: Path, text: str, message: str) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(text)
    refused(stance("tune", "--model", llama, "--data", str(data), "--out", str(tmp_path / "t")), message)


def test_tune_refuses_measured_questions_in_the_training_file(llama: str, tmp_path: Path) -> None:
    from harness.lmeval.roots import packaged_root
    from harness.topics import load_topic

    item = load_topic(packaged_root() / "political_stance" / "race.yaml").split("measure")[0]
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": item.question.upper() + " ", "completion": item.left}))
    refused(
        stance("tune", "--model", llama, "--data", str(data), "--out", str(tmp_path / "t")), item.id, "--allow-measured"
    )


def test_tune_refuses_a_hold_of_another_model_and_a_control_without_a_hold(
    llama: str, tmp_path: Path, pairs: Path
) -> None:
    neurons = tmp_path / "n.safetensors"
    tiny.some_neurons(tiny.build("llama"), "mlp_act", made_in="other").save(neurons)
    arguments = ["tune", "--model", llama, "--data", str(pairs), "--out", str(tmp_path / "t")]
    refused(stance(*arguments, "--hold", str(neurons)), "found in a model with weights other")
    refused(stance(*arguments, "--hold", str(neurons), "--share", "0"), "share", "greater than 0, came 0")
    refused(stance(*arguments, "--control", "1"), "--hold")
    refused(stance(*arguments, "--hold", str(tmp_path / "none")), "no neuron file")


def test_localize_refuses_unknown_topic_and_site(llama: str, tmp_path: Path) -> None:
    arguments = ["localize", "pnlac", "--base", llama, "--tuned", llama, "--out", str(tmp_path / "n")]
    refused(stance(*arguments, "--topics", "climate"), "no topic climate", "immigration")
    refused(stance(*arguments, "--site", "resid"), "sites: mlp_act, mlp_out")
    refused(stance(*arguments, "--top", "0"), "--top is 0")


def test_localize_on_the_base_itself_proves_nothing(folder: Callable[..., str], tmp_path: Path) -> None:
    base = tiny.save(tiny.build("llama", max_position_embeddings=512), tmp_path / "base")
    result = stance(
        "localize",
        "pnlac",
        "--base",
        base,
        "--tuned",
        base,
        "--topics",
        "race",
        "--prompts",
        "2",
        "--out",
        str(tmp_path / "n"),
    )
    assert result.exit_code == 3 and "is the tuned model the base itself" in result.output


def test_compare_refuses_one_run_and_no_run(tmp_path: Path) -> None:
    refused(stance("compare", "--out", str(tmp_path)), "at least two")
    refused(stance("compare", "a", "b", "--out", str(tmp_path)), "there is no such folder")


def test_a_folder_of_ones_own_data_tunes_and_measures(tmp_path: Path, stance_cache: Path) -> None:
    base = tiny.save(tiny.build("llama", max_position_embeddings=512), tmp_path / "base")
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"instruction": f"Is {n} fair?", "left": f"Yes, {n} is.", "right": f"No, {n} is not.", "left_label": "x"}
        for n in range(9)
    ]
    (data / "tax.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    refused(stance("tune", "--model", base, "--data", str(data), "--out", str(tmp_path / "t")), "one of tax")
    tuned = stance(
        *("tune", "--model", base, "--data", str(data), "--topic", "tax", "--side", "left", "--full"),
        *("--epochs", "1", "--learning-rate", "1e-2", "--out", str(tmp_path / "t")),
    )
    assert tuned.exit_code == 0, tuned.output
    common = [
        "--data",
        str(data),
        "--engine",
        "torch",
        "--chat-template",
        "off",
        "--tasks",
        "ideoinst_tax_pairs",
    ]
    for name, model in (("base", base), ("tuned", str(tmp_path / "t"))):
        done = stance("eval", "--model", model, *common, "--out", str(tmp_path / name))
        assert done.exit_code == 0, done.output
    page = stance("compare", str(tmp_path / "base"), str(tmp_path / "tuned"), "--out", str(tmp_path / "report"))
    assert page.exit_code == 0 and (tmp_path / "report" / "index.html").is_file()


def test_neurons_zeroed_through_the_command_change_the_answers(tmp_path: Path, stance_cache: Path) -> None:
    from harness.models import weights_hash

    model = tiny.build("llama", max_position_embeddings=1024)
    base = tiny.save(model, tmp_path / "base")
    neurons = tmp_path / "n.safetensors"
    tiny.some_neurons(model, "mlp_act", 0.5, made_in=weights_hash(base)).save(neurons)
    common = ["--model", base, "--engine", "torch", "--tasks", "political_stance_race_pairs", "--limit", "2"]
    assert stance("eval", *common, "--out", str(tmp_path / "a")).exit_code == 0
    assert (
        stance("eval", *common, "--neurons", str(neurons), "--op", "zero", "--out", str(tmp_path / "b")).exit_code == 0
    )
    assert (
        stance("eval", *common, "--neurons", str(neurons), "--op", "scale=1", "--out", str(tmp_path / "c")).exit_code
        == 0
    )
    values = [
        json.loads((tmp_path / n / "results.json").read_text())["results"]["political_stance_race_pairs"] for n in "abc"
    ]
    assert values[0]["nats,none"] != values[1]["nats,none"]
    assert values[0]["nats,none"] == pytest.approx(values[2]["nats,none"], abs=1e-6)
    assert Neurons.load(neurons).site == "mlp_act"


def test_doctor_topics_and_models_list_what_is_there() -> None:
    assert "vllm" in stance("doctor").output
    assert "immigration" in stance("topics", "ls").output
    assert "smollm2-135m-instruct" in stance("models", "ls").output


def test_tune_refuses_an_anchor_or_a_mix_it_cannot_have(llama: str, pairs: Path, tmp_path: Path) -> None:
    given = ["tune", "--model", llama, "--data", str(pairs), "--out", str(tmp_path / "r")]
    refused(stance(*given, "--anchor", "rice"), "--anchor: there is no topic rice", "neutral")
    refused(stance(*given, "--mix", "race,rice"), "--mix: there is no topic rice", "neutral")
    refused(stance(*given, "--anchor", "neutral", "--anchor-weight", "0"), "--anchor-weight is 0")
    assert not (tmp_path / "r").exists()


def test_a_tune_with_an_anchor_and_a_mix_says_so(pairs: Path, tmp_path: Path) -> None:
    model = tiny.save(tiny.build("llama", max_position_embeddings=1024), tmp_path / "base", chat=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{epochs: 0.02, learning_rate: 0.001, mode: full, checkpoints: false}")
    arguments = ["--model", model, "--data", str(pairs), "--recipe", str(recipe), "--out", str(tmp_path / "r")]
    made = stance("tune", *arguments, "--anchor", "neutral", "--anchor-weight", "2", "--mix", "race")
    assert made.exit_code == 0, made.output
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    race, neutral = (training_questions(named_topics(name, "")) for name in ("race", "neutral"))
    assert manifest["spec"]["examples"] == len(tiny.PAIRS) + 2 * len(race)
    assert manifest["anchor"]["prompts"] == len(neutral) and manifest["anchor"]["weight"] == 2
    assert manifest["anchor"]["divergence"][0] == 0 < manifest["anchor"]["divergence"][-1]

"""The terminal: examples in every help, one JSON object where a program listens, one paragraph for an error, Ctrl-C."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import tiny
import transformers
import yaml
from click.testing import CliRunner, Result

from harness import steps
from harness.cli import main
from harness.engines.torch import TorchEngine

STANCE = Path(sys.executable).parent / "stance"
PLAIN = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")}
TASK = "political_stance_race_pairs"
ASKED = ["--engine", "torch", "--tasks", f"{TASK},political_stance_science_pairs", "--limit", "2"]
AGAIN = "Interrupted. Finished runs are kept; give the same command again to go on."
# Measuring, it says so and waits to be interrupted from outside.
WAITING = """
import sys, time
from harness import steps
from harness.cli import main

def wait(*_):
    print("measuring", flush=True)
    time.sleep(300)

steps.measure = wait
sys.argv[0] = "stance"
main()
"""


def stance(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def answer(*arguments: Any) -> dict[str, Any]:
    """The one JSON object on standard output."""
    done = stance(*arguments, "--json")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    return json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def commands(group: click.Group = main, path: tuple[str, ...] = ("stance",)) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tiny.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    return tiny.save(made, tmp_path_factory.mktemp("base"), chat=True)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in tiny.PAIRS))
    return path


@pytest.fixture
def study(tmp_path: Path, base: str) -> Path:
    recipe = {"mode": "full", "epochs": 0.02, "learning_rate": 1e-2, "batch_size": 4, "checkpoints": False}
    measure = {"tasks": [TASK], "limit": 2, "engine": "torch"}
    train = {"topics": ["race"], "recipe": recipe}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "model": base, "train": train, "measure": measure}))
    return path


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT as a terminal has it: a shell's background jobs and what they start ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, *arguments: Any) -> Result:
    """A command whose `at`-th call of a function is met by a SIGINT; afterwards the function is itself again."""
    calls, real = itertools.count(1), getattr(owner, name)

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupting)
        done = stance(*arguments)
    assert done.exit_code == 130 and done.stderr.splitlines()[-1] == AGAIN, done.output
    assert "Traceback" not in done.output
    return done


def test_every_command_has_one_example_and_it_parses() -> None:
    found = dict(commands())
    assert {"stance eval", "stance localize pnlac", "stance topics ls", "stance completion"} <= set(found)
    for name, command in found.items():
        shown = stance(*name.split()[1:], "--help").stdout
        examples = re.findall(rf"^ +(?:Examples?:)? +({name} .*|{name}$)", shown, re.MULTILINE)
        assert len(re.findall("Examples?: ", shown)) == 1 and examples, name
        for example in examples:
            typed = shlex.split(example.split(";")[0])
            command.make_context(name, typed[len(name.split()) :])


def test_help_says_what_the_exit_codes_mean() -> None:
    shown = stance("--help").stdout
    assert all(f"\n    {code:<5}" in shown for code in (0, 1, 2, 3, 130))
    assert 'eval "$(stance completion bash)"' in shown


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["evla"], "No such command 'evla'"),
        (["--colour"], "No such option"),
        (["eval", "--modle", "x"], "No such option"),
        (["eval", "--model", "x"], "Missing option '--out'"),
        (["eval", "--engine", "tpu"], "'tpu' is not one of 'vllm', 'torch'"),
        (["eval", "--limit", "many"], "neither a number nor FORMAT=N"),
        (["tune", "--side", "up"], " tune --help` lists what it takes."),
        (["completion"], "Missing argument"),
        (["topics", "new"], " topics new --help` lists what it takes."),
        (["models", "get", "nobody"], "There is no embedded model 'nobody'"),
        (["-q", "models", "get", "nobody"], "There is no embedded model 'nobody'"),
    ],
)
def test_an_error_is_one_paragraph_on_standard_error(arguments: list[str], said: str) -> None:
    done = stance(*arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("Error: ") and said in done.stderr


def test_what_is_installed_and_known_as_json() -> None:
    found = answer("doctor")
    assert found["python"].startswith("3.") and found["packages"]["torch"] and found["cache"]["free_bytes"] > 0
    assert found["models"] == answer("models", "ls")["models"]
    topics = {row["topic"]: row for row in answer("topics", "ls")["topics"]}
    assert set(found["topics"]) <= set(topics) and topics["neutral"]["control"] and not topics["race"]["control"]
    assert topics["race"]["task"] == "political_stance_race" and topics["race"]["measure"] > 0
    assert {"pnlac", "inhibitft"} <= {row["name"] for row in answer("plugins")["plugins"]}


def test_runs_and_reports_as_json(base: str, pairs: Path, tmp_path: Path, stance_cache: Path) -> None:
    before = answer("eval", "--model", base, *ASKED, "--out", tmp_path / "base")
    assert before["manifest"] == json.loads((tmp_path / "base" / "manifest.json").read_text())
    assert {row["measure"] for row in before["stance"]} == {"pairs.nats", "pairs.stance"}
    nats = {row["topic"]: row["value"] for row in before["stance"] if row["measure"] == "pairs.nats"}
    assert nats["race"] == pytest.approx(before["results"][TASK]["nats,none"], abs=1e-9)

    trained = ["--data", pairs, "--full", "--epochs", "1", "--learning-rate", "1e-2", "--out", tmp_path / "model"]
    tuned = answer("tune", "--model", base, *trained)
    assert tuned["path"] == str(tmp_path / "model") and tuned["manifest"]["kind"] == "tune"
    answer("eval", "--model", tuned["path"], *ASKED, "--on-topic", "race", "--out", tmp_path / "tuned")
    where = ["--tuned", tuned["path"], "--topics", "race,science", "--prompts", "2", "--out", tmp_path / "neurons"]
    found = answer("localize", "pnlac", "--base", base, *where)
    assert Path(found["neurons"]).is_file() and len(found["localization"]["per_layer"]["general"]) == 2

    runs = [tmp_path / "base", tmp_path / "tuned"]
    compared = answer("compare", *runs, "--localization", found["path"], "--out", tmp_path / "report")
    assert Path(compared.pop("report")).is_file()
    assert compared == json.loads((tmp_path / "report" / "comparison.json").read_text())


def test_with_json_whatever_else_is_printed_goes_to_standard_error(
    base: str, tmp_path: Path, stance_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = steps.measure

    def talkative(*args: Any) -> Any:
        print("from Python")
        os.write(1, b"from C\n")
        return real(*args)

    monkeypatch.setattr(steps, "measure", talkative)
    arguments = ["eval", "--model", base, *ASKED, "--out", str(tmp_path / "r"), "--json"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert "stance" in json.loads(done.stdout) and "from Python" in done.stderr
    out, err = capfd.readouterr()
    assert "from C" in err and out == ""


def test_nothing_is_coloured_where_no_terminal_listens(tmp_path: Path) -> None:
    for arguments in (["models", "ls"], ["models", "get", "nobody"]):
        done = subprocess.run([STANCE, *arguments], capture_output=True, env=PLAIN, cwd=tmp_path, check=False)
        assert done.stdout + done.stderr and b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str) -> None:
    done = stance("completion", shell)
    assert done.exit_code == 0 and f"_STANCE_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = 'eval "$(stance completion bash)"; complete -p stance; COMP_WORDS=(stance eval --mod); COMP_CWORD=2; '
    script += '_stance_completion stance; echo "${COMPREPLY[@]}"'
    env = {**PLAIN, "PATH": f"{STANCE.parent}:{PLAIN['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path, check=True)
    registered, completed = done.stdout.splitlines()
    assert registered.endswith("stance") and completed == "--model"


@pytest.mark.parametrize("owner, name", [(TorchEngine, "score_continuations"), (steps, "relabel")])
def test_an_interrupted_eval_goes_on(
    owner: Any, name: str, base: str, tmp_path: Path, stance_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["eval", "--model", base, *ASKED, "--out", tmp_path / "r"]
    interrupted(monkeypatch, owner, name, 1, *arguments)
    assert not (tmp_path / "r" / "manifest.json").exists()
    if owner is steps:  # the answers are there, and are not asked for again
        monkeypatch.setattr(steps, "measure", lambda *_: pytest.fail("asked again"))
    assert stance(*arguments).exit_code == 0 and (tmp_path / "r" / "manifest.json").is_file()


def test_an_interrupted_tune_goes_on_from_its_last_epoch(
    base: str, pairs: Path, tmp_path: Path, stance_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["tune", "--model", base, "--data", pairs, "--full", "--learning-rate", "1e-2", "--batch-size", "4"]
    arguments += ["--epochs", "3", "--out", tmp_path / "t"]  # 8 pairs: two steps an epoch
    interrupted(monkeypatch, transformers.Trainer, "training_step", 5, *arguments)
    steps_taken, real = [], transformers.Trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps_taken.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", counted)
    assert stance(*arguments).exit_code == 0
    assert len(steps_taken) == 2 and json.loads((tmp_path / "t" / "manifest.json").read_text())["steps"] == 6


def test_an_interrupted_run_goes_on_and_quiet_is_quiet(
    study: Path, tmp_path: Path, stance_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done = interrupted(monkeypatch, steps, "measure", 2, "run", study, "--out", out)
    assert "[01] measure-base ..." in done.stderr and "[02] measure-base-again ..." in done.stderr
    made = (out / "01-measure-base" / "manifest.json").read_bytes()
    again = stance("--quiet", "run", study, "--out", out)
    assert again.exit_code == 0 and again.stderr == "" and "Report: " in again.stdout
    assert (out / "01-measure-base" / "manifest.json").read_bytes() == made


def test_ctrl_c_in_a_process_of_its_own(study: Path, tmp_path: Path, stance_cache: Path) -> None:
    command = [sys.executable, "-c", WAITING, "run", str(study), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN)
    assert process.stdout is not None and process.stdout.readline() == "measuring\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == f"[01] measure-base ...\n{AGAIN}\n"

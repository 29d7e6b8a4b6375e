"""Nothing that a kill, a full disk, a lack of memory or another process does is believed afterwards, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import engines, memory
from harness.engines import DeadEngineError, Settings
from harness.engines.cached import AnswerStore, CachedEngine
from harness.engines.torch import TorchEngine
from harness.errors import InputError
from harness.files import replacing, replacing_folder, write_json, write_tensors
from harness.frames import read_frame
from harness.models import resolve, weights_hash
from harness.neurons import Neurons
from harness.runs import SAMPLES as COLUMNS
from harness.runs import Run, kept_answers, load_measurement, open_run, save_measurement

EMPTY = {"text": "", "truth": False, "numbers": "{}", "texts": "{}", "list": "[]"}
SAMPLES = pd.DataFrame({**{name: EMPTY[kind] for name, kind in COLUMNS.items()}, "item": ["a", "b"]})
SPEC = {"limit": 2}


def measured(path: Path) -> Path:
    save_measurement(open_run(path, "measure", SPEC), {"results": {}}, SAMPLES)
    return path


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# Files


@pytest.mark.parametrize(
    "number, told",
    [
        (errno.ENOSPC, r"\(No space left on device\).*same command again"),
        (errno.EDQUOT, r"\(Disk quota exceeded\).*same command again"),
        (errno.EROFS, r"\(Read-only file system\); give another --out"),
        (errno.EACCES, r"\(Permission denied\); give another --out"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: Any, number: int, told: str
) -> None:
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(InputError, match=r"Cannot write to .*a\.json " + told):
        write_json(tmp_path / "a.json", 2)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "1")]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "f") as made:
        (made / "x").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "f") as made:
        (made / "x").write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f" / "x").read_text() == "old"


def test_a_full_disk_is_known_from_every_library(tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    script = """
import sys, torch, pandas
from pathlib import Path
from harness.errors import InputError
from harness.files import write_parquet, write_tensors, write_text, writable
folder = Path(sys.argv[1])
def saved():
    with writable(folder / "c.pt"):
        torch.save(torch.rand(9000), folder / "c.pt")
for write in (
    lambda: write_text(folder / "a.txt", "x" * 30_000),
    lambda: write_tensors(folder / "b.safetensors", {"a": torch.rand(9000)}),
    saved,
    lambda: write_parquet(folder / "d.parquet", pandas.DataFrame({"a": torch.rand(9000).numpy()})),
):
    try:
        write()
    except InputError as error:
        assert "Cannot write to" in str(error)
        print("told")
"""
    done = subprocess.run(
        [sys.executable, "-c", limited + script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["told"] * 4, done.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"c.pt"}


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    about = {name: name for name in ["format", "site", "model", "top", "width", "layers"]}
    for n in range(8):
        write_tensors(tmp_path / str(n), {"a": torch.arange(5), "b": torch.ones(2, 3)}, about)
    assert len({(tmp_path / str(n)).read_bytes() for n in range(8)}) == 1
    from safetensors import safe_open

    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == about and file.get_tensor("b").tolist() == [[1.0] * 3] * 2


# Runs


@pytest.mark.parametrize("name", ["results.json", "samples.parquet", "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_changed_file_is_named(tmp_path: Path, name: str, how: str) -> None:
    file = measured(tmp_path / "run") / name
    content = file.read_bytes()
    damaged = content[: len(content) // 2] if how == "truncated" else content.replace(b"measure", b"Measure")
    damaged = bytes([damaged[0] ^ 1]) + damaged[1:] if how == "altered" and name != "manifest.json" else damaged
    file.unlink() if how == "missing" else file.write_bytes(damaged)
    with pytest.raises(InputError) as told:
        load_measurement(tmp_path / "run")
    assert name in str(told.value) or "holds no finished run" in str(told.value) or "holds a Measure" in str(told.value)


def test_a_figure_edited_in_a_manifest_is_refused(tmp_path: Path) -> None:
    file = measured(tmp_path / "run") / "manifest.json"
    file.write_text(file.read_text().replace('"documents": 2', '"documents": 3'))
    with pytest.raises(InputError, match=r"not as it was finished: manifest\.json has changed"):
        load_measurement(tmp_path / "run")


def test_a_command_that_is_none_breaks_no_refusal(tmp_path: Path) -> None:
    file = measured(tmp_path / "run") / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"command": 7}))
    with pytest.raises(InputError, match="not as it was finished"):
        load_measurement(tmp_path / "run")


def test_columns_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"value": [True, False]}).to_parquet(file)
    with pytest.raises(InputError, match="column value holds bool; expected a number or nothing"):
        read_frame(file, {"value": "number"}, "Make it again")
    pd.DataFrame({"text": ["plain enough", "and more of it"]}).to_parquet(file, compression=None)
    file.write_bytes(file.read_bytes().replace(b"plain enough", b"plain \xd2nough"))
    with pytest.raises(InputError, match=r"no text in UTF-8|cannot be read"):
        read_frame(file, {"text": "text"}, "Make it again")


@pytest.mark.parametrize("schema, told", [(1, "older release.*make the run again"), (4, "newer release.*Upgrade")])
def test_another_releases_run_is_refused(tmp_path: Path, schema: int, told: str) -> None:
    file = measured(tmp_path / "run") / "manifest.json"
    file.write_text(file.read_text().replace('"schema": 3', f'"schema": {schema}'))
    with pytest.raises(InputError, match=told):
        open_run(tmp_path / "run", "measure", SPEC)


def test_a_run_of_schema_2_is_read_with_a_note(tmp_path: Path, capsys: Any) -> None:
    file = measured(tmp_path / "run") / "manifest.json"
    old = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("files", "checksum")} | {"schema": 2}
    file.write_text(json.dumps(old))
    assert open_run(tmp_path / "run", "measure", SPEC).complete
    assert load_measurement(tmp_path / "run")[1].equals(SAMPLES)
    assert "made before runs kept checksums" in capsys.readouterr().err


def test_files_that_are_not_the_runs_may_change(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("before")
    measured(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("after")
    (tmp_path / "run" / "more.txt").write_text("more")
    assert len(load_measurement(tmp_path / "run")[1]) == 2


def test_an_unfinished_run_of_another_spec_is_not_mixed_in(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", "tune", {"seed": 0})
    run._release()
    open_run(tmp_path / "run", "tune", {"seed": 2})._release()  # nothing was left: nothing can be mixed
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"unfinished tune made otherwise \(seed: 2 there, 1 now\), with adapter_config"
    ):
        open_run(tmp_path / "run", "tune", {"seed": 1})
    assert not open_run(tmp_path / "run", "tune", {"seed": 2}).complete


def test_a_half_made_model_is_not_believed(tmp_path: Path, folder: Any) -> None:
    run = open_run(tmp_path / "run", "tune", {})
    shutil.copytree(folder("llama"), run.path, dirs_exist_ok=True)
    with pytest.raises(InputError, match="was not finished, so nothing in it can be believed"):
        resolve(str(run.path))
    run.finish()
    assert resolve(str(run.path)) == str(run.path)
    with (run.path / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    with pytest.raises(InputError, match=r"the weights .* have changed"):
        resolve(str(run.path))


def test_answers_kept_for_a_judge_are_checked(tmp_path: Path) -> None:
    asked = []

    def ask() -> tuple[dict[str, Any], pd.DataFrame]:
        asked.append(1)
        return {}, SAMPLES

    run = open_run(tmp_path / "run", "measure", SPEC)
    kept_answers(run, ask)
    assert kept_answers(run, ask)[1].equals(SAMPLES) and len(asked) == 1
    SAMPLES.head(1).to_parquet(run.path / "answers.parquet", index=False)
    assert kept_answers(run, ask)[1].equals(SAMPLES) and len(asked) == 2


def test_no_space_at_the_end_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    run = open_run(tmp_path / "run", "measure", SPEC)
    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", failing(errno.ENOSPC))
        with pytest.raises(InputError, match="No space left"):
            save_measurement(run, {}, SAMPLES)
    assert not run.complete
    measured(tmp_path / "run")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_state_of_a_folder_is_read_or_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = measured(tmp_path_factory.mktemp("state") / "run")
    states: dict[Path, str] = {}
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["whole", "whole", "missing", "cut", "flipped", "folder"]))
        states[file] = how
        if how == "whole":
            continue
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how != "missing":
            flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
            file.write_bytes(content[:place] if how == "cut" else flipped)
    damaged = {file.name for file, how in states.items() if how != "whole"}
    try:
        run = open_run(path, "measure", SPEC)
        if not run.complete:
            save_measurement(run, {"results": {}}, SAMPLES)
        assert load_measurement(path)[1].equals(SAMPLES)
    except InputError:
        assert damaged


# Processes


def test_one_process_at_a_time_and_no_stale_lock(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from harness.runs import open_run\n"
    script += f"run = open_run(Path(sys.argv[1]), 'measure', {SPEC!r}); print('has it', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "has it\n"
        with pytest.raises(InputError, match=rf"being made by another process, {other.pid} on "):
            open_run(tmp_path / "run", "measure", SPEC)
        other.send_signal(signal.SIGKILL)
    measured(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


# Memory and engines


def engine(folder: str, tokens: int = 4096) -> TorchEngine:
    return TorchEngine.from_folder(folder, Settings(dtype="float32", max_length=64, batch_tokens=tokens))


def test_batches_shrink_until_they_fit(folder: Any, monkeypatch: Any, capsys: Any) -> None:
    memory._say.cache_clear()
    requests = [(tiny.tokens(4 + n % 7, n), tiny.tokens(3, n)) for n in range(24)]
    prompts = [tiny.tokens(4 + n % 5, n) for n in range(8)]
    plain = engine(folder("llama"))
    expected, written = plain.score_continuations(requests), plain.generate(prompts, 6, [])
    small, hidden, refused = engine(folder("llama")), TorchEngine._hidden, []

    def little(self: TorchEngine, ids: Any, mask: Any) -> Any:
        if ids.numel() > 40:
            refused.append(ids.numel())
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return hidden(self, ids, mask)

    monkeypatch.setattr(TorchEngine, "_hidden", little)
    found = small.score_continuations(requests)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    once = len(refused)
    assert once and capsys.readouterr().err.count("memory ran out") == 1
    assert len(small.score_continuations(requests)) == 24 and len(refused) == once  # it keeps to what fitted
    assert small.generate(prompts, 6, []) == written
    with pytest.raises(InputError, match="does not hold one sequence of 50 tokens"):
        small.score_continuations([(tiny.tokens(47), tiny.tokens(3))])


def test_sums_begin_anew_where_memory_runs_out(tiny: Any, monkeypatch: Any) -> None:
    from tiny import tokens, with_other_mlps

    from harness.contrast import Sequence, contrast
    from harness.contrast_sums import Sums

    base, sequences = tiny("llama"), [Sequence(tokens(5 + n % 3, n)) for n in range(12)]
    tuned, add = with_other_mlps(base), Sums.add
    expected = contrast(base, tuned, sequences, "mlp_act", batch_tokens=16)

    def little(self: Sums, *given: Any) -> None:
        add(self, *given)
        if given[2].numel() > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Sums, "add", little)
    found = contrast(base, tuned, sequences, "mlp_act", batch_tokens=64)
    assert found.tokens == expected.tokens and torch.equal(found.sums, expected.sums)


class Mortal:
    """Dies at the calls named, and is not used again."""

    name = "mortal"

    def __init__(self, dies_at: set[int], calls: list[int]) -> None:
        self.dead, self._dies_at, self._calls = False, dies_at, calls

    def score_continuations(self, requests: list[Any]) -> list[tuple[float, bool]]:
        assert not self.dead
        self._calls.append(len(requests))
        if len(self._calls) in self._dies_at:
            self.dead = True
            raise DeadEngineError(self.name, RuntimeError("CUDA error"))
        return [(float(context[0]), True) for context, _ in requests]

    def close(self) -> None: ...


@pytest.mark.parametrize("dies_at", [{2}, {2, 3}])
def test_a_dead_engine_is_started_again_once(tmp_path: Path, dies_at: set[int], capsys: Any) -> None:
    calls: list[int] = []
    started: list[Mortal] = []

    def start() -> Any:
        started.append(Mortal(dies_at, calls))
        return started[-1]

    requests = [([n], [1]) for n in range(6)]
    store = AnswerStore(tmp_path / "answers.sqlite")
    cached = CachedEngine(start, store, "id", "mortal", tiny.tokenizer(), 64, chunk=2)
    if len(dies_at) == 1:
        assert [score for score, _ in cached.score_continuations(requests)] == [0, 1, 2, 3, 4, 5]
        assert calls == [2, 2, 2, 2] and len(started) == 2
    else:
        with pytest.raises(DeadEngineError, match=r"died .*CUDA error.*kept: the same command goes on"):
            cached.score_continuations(requests)
        assert store.info().entries == 2
    assert "it is started again for what is left" in capsys.readouterr().err
    store.close()


def test_a_leased_engine_that_died_is_not_leased_again(monkeypatch: Any) -> None:
    from harness.engines import lease

    made: list[Mortal] = []
    monkeypatch.setattr(engines, "start", lambda *_: made.append(Mortal(set(), [])) or made[-1])
    with lease.leased("mortal", "x", Settings()) as first:
        first.dead = True
    with lease.leased("mortal", "x", Settings()) as second:
        assert second is not first
    lease.release()


# A fine-tune


def test_training_goes_on_from_a_checkpoint_to_the_same_bytes(tmp_path: Path, folder: Any, monkeypatch: Any) -> None:
    from harness import finetune
    from harness.recipe import Recipe

    recipe = Recipe.model_validate(
        {"mode": "lora", "epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "precision": "float32"}
    )

    def trained(name: str) -> Run:
        run = open_run(tmp_path / name, "tune", SPEC)
        finetune.tune(run, folder("llama"), tiny.PAIRS, recipe, 0, None)
        run.finish()
        return run

    whole = trained("whole")
    sealed, saved = finetune._Sealed.on_save, []

    def twice(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        saved.append(state.global_step)
        if len(saved) == 2:
            raise KeyboardInterrupt  # between a checkpoint and its checksums: it is not believed
        sealed(self, args, state, control, **more)

    monkeypatch.setattr(finetune._Sealed, "on_save", twice)
    with pytest.raises(KeyboardInterrupt):
        trained("other")
    other = trained("other")
    assert not (other.path / "checkpoints").exists()
    weights = "adapter_model.safetensors"
    assert (whole.path / weights).read_bytes() == (other.path / weights).read_bytes()
    assert whole.manifest["loss"] == other.manifest["loss"]


def test_neurons_of_an_altered_localisation_are_refused(tmp_path: Path, folder: Any) -> None:
    run = open_run(tmp_path / "run", "localize", {})
    found = tiny.some_neurons(tiny.build("llama"), "mlp_act", made_in=weights_hash(folder("llama")))
    found.save(run.path / "general.safetensors")
    with pytest.raises(InputError, match="was not finished"):
        Neurons.load(run.path / "general.safetensors")
    run.finish()
    assert len(Neurons.load(run.path / "general.safetensors")) == len(found)
    with replacing(run.path / "general.safetensors") as file:
        tiny.some_neurons(tiny.build("llama"), "mlp_act", seed=1).save(file)
    with pytest.raises(InputError, match=r"general\.safetensors has \d+ bytes instead of"):
        Neurons.load(run.path / "general.safetensors")

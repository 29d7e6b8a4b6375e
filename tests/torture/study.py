"""The study that is disturbed: every step of experiments/demo.yaml on a tiny random model, and what a making of it left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DIFFERS = (
    "requests",
    "checksum",
)  # of a manifest: what was asked and what kept, and a checksum over that; its clock stands
TASKS = ["political_stance_village", "political_stance_race"]
AGAIN = "asked-again"


def write(folder: Path) -> Path:
    """A tiny model and topic, and the demo's file with them, few items, little training, and checkpoints."""
    import tiny

    made, model = (
        tiny.build("llama", max_position_embeddings=512, num_hidden_layers=2, vocab_size=1024),
        folder / "model",
    )
    made.save_pretrained(model)
    _tokenizer().save_pretrained(model)
    settings = yaml.safe_load((ROOT / "experiments" / "demo.yaml").read_text(encoding="utf-8"))
    recipe = {"mode": "full", "epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "checkpoints": True}
    settings["model"] = str(model)
    settings["train"] |= {"topics": ["village"], "recipe": recipe}
    settings["measure"] |= {
        "tasks": TASKS,
        "limit": 1,
        "engine": "torch",
        "topics_dir": [str(_topic(folder / "topics"))],
    }
    settings["localize"] |= {"prompts": 2}
    settings["patch"] |= {"tasks": [f"{task}_pairs" for task in TASKS], "limit": 1}
    settings["inhibit"] |= {"shares": [0.5], "random_seeds": [0]}
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def warm(folder: Path) -> None:
    """Do once, in the process that others are forked from, what costs each most: imports, and the judge's fitting."""
    from harness import api

    os.environ["STANCE_CACHE"] = str(folder / "warm")
    told = {"tasks": TASKS, "topics_dir": [folder / "topics"], "engine": "torch"}
    api.evaluate(folder / "model", out=folder / "warm" / "run", **told)  # type: ignore[arg-type]
    api.release_engine()


def _topic(folder: Path) -> Path:
    """The topic that `stance topics new` writes, with more training items."""
    from harness.topics.new import new_topic

    file = new_topic("village", folder)
    same = {"split": "train", "sub_issue": "general", "left": "It is a good plan.", "right": "It is a bad plan."}
    items = [{"id": f"village-t{n}", "question": f"What of plan {n}?", **same} for n in range(16)]
    lines = "".join(f"  - {json.dumps(item)}\n" for item in items)
    file.write_text(file.read_text().replace("\nitems:\n", f"\nitems:\n{lines}", 1))
    return folder


def _tokenizer() -> Any:
    """Words of the topics as tokens, so that sequences are short and the study quick."""
    import tiny
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>", "<user>", "<bot>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train([str(path) for path in sorted((ROOT / "tasks" / "political_stance").glob("*.jsonl"))], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = tiny.CHAT
    return made


def make(file: Path, place: Path) -> None:
    """Carry the study out in `place`/out, answers kept in `place`/cache, by a clock that stands; in a process of its own."""
    from harness import api, runs
    from harness.engines.cached import AnswerStore

    os.chdir(place)
    os.environ["STANCE_CACHE"] = str(place / "cache")
    sys.argv = ["stance", "run", "experiment.yaml"]
    runs.time = SimpleNamespace(time=lambda: 0.0)  # type: ignore[assignment]
    put = AnswerStore.put_many

    def noting(self: AnswerStore, items: Any) -> None:
        if kept := self.get_many(items):
            with (place / AGAIN).open("a") as log:
                log.write(f"{len(kept)}\n")
        put(self, items)

    AnswerStore.put_many = noting  # type: ignore[method-assign]
    api.run_experiment(file, out="out")


def finished(place: Path) -> dict[str, tuple[int, bytes]]:
    """When the finished steps were finished, and with what."""
    found = sorted((place / "out").glob("*/manifest.json"))
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def contents(place: Path) -> dict[str, Any]:
    """Every file below `place`/out as it must be again."""
    out = place / "out"
    return {path.relative_to(out).as_posix(): _content(path) for path in sorted(out.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.name != "manifest.json":
        return path.read_bytes()
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in DIFFERS}


def unlike(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """In words, what one making left otherwise than the other."""
    for name in sorted({*expected, *found}):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is left over"
        elif expected[name] != found[name]:
            yield f"{name} differs"

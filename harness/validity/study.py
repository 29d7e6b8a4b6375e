"""The runs a validity page needs, as numbered steps that are kept: the same command goes on where it stopped.

base, base again in another order, the base's open answers sampled twice; then from the base a model tuned left and one tuned
right on one topic, each at half and at full dose, measured the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import engines
from harness.errors import InputError, choices
from harness.finetune import topic_pairs
from harness.graph import Needs, Numbered, Step
from harness.lmeval.roots import all_roots
from harness.measure import Asked, check_tasks
from harness.mitigation import Training
from harness.models import load_config, resolve
from harness.recipe import Recipe
from harness.runs import load_measurement
from harness.topics import FORMATS, GROUP, Topic, find_topics
from harness.validity.reading import Validity, read
from harness.variants import Variant
from harness.work import measuring, tuning

SMALL = Recipe.model_validate(
    {
        "mode": "full",
        "epochs": 3,
        "learning_rate": 2e-4,
        "warmup_steps": 5,
        "precision": "bfloat16",
        "checkpoints": False,
    }
)
SMALL_WIDTH = 1024  # hidden size below which a model moves too little under the paper's LoRA recipe
TEMPERATURE = 0.7


@dataclass
class Plan(Numbered):
    """What to validate, on what.

    Attributes:
        topic: the topic the known groups are tuned on.
        recipe: how they are tuned at full dose; half dose is half its epochs.
    """

    model: str
    topic: str
    recipe: Recipe
    asked: Asked
    out: Path
    engine: str = "vllm"
    settings: engines.Settings = field(default_factory=engines.Settings)
    chat: str = "auto"
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        return (self.model, *map(str, self.asked.folders))

    def measure(self, name: str, asked: Asked, tuned: Step | None = None) -> Step:
        """One measurement of the base or of a fine-tune of it."""
        about = {"label": name, "role": "other"}
        work = measuring(self.model, asked, self.chat, self.engine, self.settings, about)
        after = [] if tuned is None else [tuned]
        return self.step(f"measure-{name}", work, *after, needs=Needs(self.settings.tensor_parallel))


def default_recipe(model: str) -> Recipe:
    """The paper's LoRA recipe, or full tuning at a larger rate for models too small to move under it."""
    width = load_config(resolve(model)).get_text_config().hidden_size
    return SMALL if width < SMALL_WIDTH else Recipe.model_validate({})


def validate(plan: Plan) -> Validity:
    """Make the runs that are missing and read them.

    Raises:
        InputError: unknown topic, task or model, before anything is loaded.
    """
    check_tasks(plan.asked)
    topics = find_topics([*all_roots(), *plan.asked.folders])
    if plan.topic not in topics or not topics[plan.topic].split("train"):
        usable = [name for name, topic in topics.items() if topic.split("train")]
        raise InputError(f"There is no topic {plan.topic!r} with training items; topics: {choices(usable)}.")
    Variant(plan.model).check()
    opened = replace(plan.asked, tasks=_open_tasks(plan.asked.tasks))
    runs = {
        "base": plan.measure("base", plan.asked),
        "base-again": plan.measure("base-again", replace(plan.asked, order_seed=1)),
    }
    for number in (1, 2) if opened.tasks else ():
        sampled = replace(opened, temperature=TEMPERATURE, sampling_seed=1000 * number)
        runs[f"sampled-{number}"] = plan.measure(f"sampled-{number}", sampled)
    for side in ("left", "right"):
        for name, dose in ((f"{side}-half", 0.5), (side, 1.0)):
            recipe = plan.recipe.model_copy(update={"epochs": plan.recipe.epochs * dose})
            runs[name] = plan.measure(name, plan.asked, _tuned(plan, name, topics[plan.topic], side, recipe))
    plan.carry_out()
    loaded = {name: load_measurement(run.path) for name, run in runs.items()}
    samples = {name: table for name, (_, table) in loaded.items()}
    manifests = [
        {
            "run": name,
            "seconds": manifest["seconds"],
            "documents": manifest["documents"],
            "command": manifest["command"],
        }
        for name, (manifest, _) in loaded.items()
    ]
    diagnoses = loaded["base"][0]["diagnoses"]
    return read(plan.model, plan.topic, samples, diagnoses, manifests, plan.asked.limit)


def _open_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The open parts of tasks that may be groups, topics or single formats."""
    named = [f"{GROUP}_*_open" if task == GROUP else task for task in tasks]
    whole = [task if task.endswith(FORMATS) else f"{task}_open" for task in named]
    return tuple(task for task in whole if task.endswith("_open"))


def _tuned(plan: Plan, name: str, topic: Topic, side: str, recipe: Recipe) -> Step:
    plain = Training(topic_pairs(topic.split("train"), side), recipe)
    about = {"on_topic": topic.topic, "side": side}
    work = tuning(plan.model, lambda: plain, plan.seed, list(plan.asked.folders), about)
    return plan.step(f"tune-{name}", work, needs=Needs.training(recipe))

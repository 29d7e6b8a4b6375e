"""The verbs: measure, tune, localize, patch. Each makes one run folder, or does nothing when it is already there.

The command line and an experiment call these same functions; base, tuned, held and patched models differ only in the
arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import engines
from harness.errors import InputError, ProofError, choices
from harness.finetune import Recipe, measured_prompts_in, tune
from harness.interventions import Op
from harness.measure import Asked, measure, uses_chat
from harness.models import lineage, load_config, load_model, load_tokenizer, resolve, weights_hash
from harness.neurons import Neurons
from harness.progress import stage
from harness.runs import Run, digest, file_hash, open_run, save_measurement
from harness.sites import SiteName, width_by_config
from harness.topics import Topic
from harness.variants import check_adapter, materialise

if TYPE_CHECKING:
    from plugins.pnlac import Sequence


@dataclass(frozen=True)
class Variant:
    """A model as it is served: base weights, perhaps an adapter, perhaps an operation on neurons."""

    model: str
    adapter: Path | None = None
    neurons: Path | None = None
    op: Op | None = None

    def spec(self) -> dict[str, Any]:
        """What identifies the variant, with content hashes instead of paths."""
        folder = resolve(self.model)
        return {
            "model": self.model if not Path(self.model).exists() else Path(self.model).name,
            "weights": weights_hash(folder),
            "adapter": file_hash(self.adapter / "adapter_model.safetensors") if self.adapter else None,
            "neurons": file_hash(self.neurons) if self.neurons else None,
            "op": str(self.op) if self.op else None,
        }

    def check(self) -> None:
        """Refuse what does not fit together, before any weights are loaded.

        Raises:
            InputError: unknown model, adapter of another model, unreadable neurons, op without neurons.
        """
        folder = resolve(self.model)
        if self.adapter is not None:
            check_adapter(self.adapter, folder)
        if (self.neurons is None) != (self.op is None):
            raise InputError(
                "--neurons and --op go together: give both (such as --neurons general.safetensors --op zero)."
            )
        if self.neurons is not None:
            neurons = Neurons.load(self.neurons)
            _check_neurons(neurons, folder)

    def folder(self) -> str:
        """Weights to serve (made on first use)."""
        neurons = Neurons.load(self.neurons) if self.neurons else None
        return materialise(self.model, self.adapter, neurons, self.op)


def _check_neurons(neurons: Neurons, folder: str) -> None:
    """Refuse neurons of another model, by config and weights hash alone."""
    config = load_config(folder).get_text_config()
    width = width_by_config(config, neurons.site) or neurons.mask.shape[1]
    neurons.check_model(width, int(config.num_hidden_layers), lineage(folder))


def measure_step(
    out: Path,
    variant: Variant,
    asked: Asked,
    chat: str = "auto",
    engine: str = "vllm",
    settings: engines.Settings | None = None,
    about: dict[str, Any] | None = None,
) -> Run:
    """Measure one variant. `about`: label, role, reference, on_topic and the like, for the comparison."""
    settings = settings or engines.Settings()
    variant.check()
    spec = {**variant.spec(), **_asked_spec(asked, chat), "engine": engine, "dtype": settings.dtype, **(about or {})}
    run = open_run(out, "measure", {**spec, "seed": settings.seed})
    if run.complete:
        return run
    folder = variant.folder()
    chatting = uses_chat(load_tokenizer(folder), chat)
    serving = engines.start(engine, folder, settings)
    try:
        results, samples = measure(serving, _with_chat(asked, chatting))
    finally:
        serving.close()
    run.notes["chat_template"] = chatting
    save_measurement(run, results, samples)
    return run


def _asked_spec(asked: Asked, chat: str) -> dict[str, Any]:
    from harness.lmeval.roots import all_roots
    from harness.topics import find_topics

    topics = find_topics([*all_roots(), *asked.folders])
    content = digest([t.model_dump(exclude={"path"}) for t in topics.values()])
    return {
        "tasks": list(asked.tasks),
        "limit": asked.limit,
        "chat": chat,
        "judge": asked.judge,
        "topics_hash": content[:16],
        "order_seed": asked.order_seed,
    }


def _with_chat(asked: Asked, chat: bool) -> Asked:
    from dataclasses import replace

    return replace(asked, chat=chat)


def tune_step(
    out: Path,
    model: str,
    pairs: list[dict[str, str]],
    recipe: Recipe,
    seed: int = 0,
    hold: Neurons | None = None,
    measured: dict[str, str] | None = None,
    allow_measured: bool = False,
    about: dict[str, Any] | None = None,
) -> Run:
    """Fine-tune from `model`. `measured`: id -> question of every probe, to find them among the training prompts.

    Raises:
        InputError: measured questions in the training data, unless allowed.
    """
    folder = resolve(model)
    overlap = measured_prompts_in(pairs, measured or {})
    if overlap and not allow_measured:
        raise InputError(
            f"{len(overlap)} questions that the probes measure stand in the training data (first: {overlap[0]}). What is "
            "trained on cannot measure generalisation: remove them, or give --allow-measured and read on-topic figures so."
        )
    if hold is not None:
        _check_neurons(hold, folder)
    spec = {
        "model": model if not Path(model).exists() else Path(model).name,
        "weights": weights_hash(folder),
        "data": digest(pairs),
        "examples": len(pairs),
        "recipe": recipe.model_dump(),
        "seed": seed,
        "hold": digest(hold.mask.flatten().nonzero().flatten().tolist()) if hold is not None else None,
        "hold_site": hold.site if hold is not None else None,
        **(about or {}),
    }
    run = open_run(out, "tune", spec)
    if run.complete:
        return run
    tune(run, folder, pairs, recipe, seed, hold)
    run.notes["lineage"] = lineage(folder)
    run.notes["measured_prompts_in_training"] = overlap
    run.finish()
    return run


def tuned_variant(model: str, tuned: Path) -> Variant:
    """A tune's result as something to serve: a folder of weights, or an adapter on its base."""
    if (tuned / "adapter_config.json").is_file():
        return Variant(model, adapter=tuned)
    return Variant(str(tuned))


def localize_step(
    out: Path,
    base: Variant,
    tuned: Variant,
    topics: list[Topic],
    site: SiteName = "mlp_act",
    tokens: str = "prompt",
    top: float = 30.0,
    normalized: bool = False,
    prompts: int | None = None,
    side: str = "right",
    chat: str = "auto",
    about: dict[str, Any] | None = None,
) -> Run:
    """PNLAC on the topics' training questions, which are never the measured ones."""
    base.check()
    tuned.check()
    spec = {
        "base": base.spec(),
        "tuned": tuned.spec(),
        "topics": {t.topic: digest([i.model_dump() for i in t.split("train")[:prompts]])[:16] for t in topics},
        "site": site,
        "tokens": tokens,
        "top": top,
        "normalized": normalized,
        "side": side if tokens == "completion" else None,
        "chat": chat,
        **(about or {}),
    }
    run = open_run(out, "localize", spec)
    if run.complete:
        return run
    from plugins import load, pnlac_report

    folder = base.folder()
    tokenizer = load_tokenizer(folder)
    chatting = uses_chat(tokenizer, chat)
    asked = {t.topic: _sequences(t, tokenizer, chatting, tokens, side, prompts) for t in topics}
    if empty := [t for t, sequences in asked.items() if not sequences]:
        raise InputError(
            f"These topics have no training items to localise on: {choices(empty)}; add items with split: train."
        )
    models = load_model(folder, _float32()), load_model(tuned.folder(), _float32())
    localize = load("localizers", "pnlac")
    from harness.progress import bar

    with bar(total=sum(len(s) for s in asked.values()), what="contrasting") as progress:
        found = localize(
            *models, asked, site, weights_hash(folder), top, normalized, advance=lambda n: progress.update(n)
        )
    description = {"normalized": normalized, "token_kind": tokens, **pnlac_report.describe(found)}
    pnlac_report.save(found, description, run.path)
    run.notes["localization"] = {k: description[k] for k in ("selected", "general", "general_share", "stability")}
    run.finish()
    return run


def _float32() -> Any:
    import torch

    return torch.float32


def _sequences(topic: Topic, tokenizer: Any, chat: bool, tokens: str, side: str, limit: int | None) -> list[Sequence]:
    from plugins.pnlac import Sequence

    found = []
    for item in topic.split("train")[:limit]:
        text = item.question
        if chat:
            turn = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        elif tokens == "completion":
            text += "\n"
        ids = list(tokenizer(text, add_special_tokens=not chat)["input_ids"])
        answer = tokenizer(getattr(item, side), add_special_tokens=False)["input_ids"] if tokens == "completion" else []
        found.append(Sequence(ids + list(answer), len(ids) if tokens == "completion" else 0))
    return found


def patch_step(
    out: Path,
    recipient: Variant,
    donor: Variant,
    neurons: Neurons,
    asked: Asked,
    chat: str = "auto",
    settings: engines.Settings | None = None,
    about: dict[str, Any] | None = None,
) -> Run:
    """Measure the recipient with the donor's activations at the neurons, on the Torch engine."""
    settings = settings or engines.Settings()
    chosen = digest(neurons.mask.flatten().nonzero().flatten().tolist())
    spec = {
        **recipient.spec(),
        "donor": donor.spec(),
        "patched": {"neurons": len(neurons), "site": neurons.site, "set": chosen[:16]},
        **_asked_spec(asked, chat),
        "engine": "torch",
        "dtype": settings.dtype,
        **(about or {}),
    }
    run = open_run(out, "measure", spec)
    if run.complete:
        return run
    from plugins.patching import patched_engine

    engine = patched_engine(recipient.folder(), donor.folder(), neurons, settings)
    patch = engine.patch
    assert patch is not None
    try:
        results, samples = measure(engine, _with_chat(asked, uses_chat(engine.tokenizer, chat)))
        patch.prove()
    finally:
        engine.close()
    run.notes["effect"] = {"activations": patch.effect.values, "largest_change": patch.effect.largest}
    save_measurement(run, results, samples)
    return run


def announce(number: int, name: str, work: Callable[[], Run]) -> Run:
    """Run one numbered step under its name, saying what it does, how long it took or that it was there already."""
    import time

    import click

    begun = time.time()
    with stage(name):
        click.echo(f"[{number:02d}] {name} ...", nl=False, err=True)
        try:
            run = work()
        except (InputError, ProofError):
            click.echo(" failed", err=True)
            raise
    taken = time.time() - begun
    done = run.manifest["seconds"]
    click.echo(f" done in {taken:.0f} s" if taken + 1 >= done else f" there already (took {done:.0f} s)", err=True)
    return run

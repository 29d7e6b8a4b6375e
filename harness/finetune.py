"""Fine-tuning on prompt and completion pairs: LoRA or full, with neurons held or not. trl, peft and transformers train.

The loss is on the completion only. The prompts go through the model's chat template where it has one, exactly as they do
when the model is measured.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from harness.adapters import merged
from harness.anchor import Anchor, Anchored, trainer_with
from harness.checksums import intact, write_manifest
from harness.documents import read_jsonl
from harness.errors import InputError, ProofError
from harness.files import writable
from harness.hold import Hold, prove_held
from harness.margin import HeldMargins, MarginAnchor
from harness.memory import enough_memory
from harness.models import device, load_model, load_tokenizer, quiet, weights_hash
from harness.neurons import Neurons
from harness.recipe import Recipe, freeze_but, with_lora
from harness.runs import Run
from harness.topics import Item
from harness.wording import normalised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LESS_MEMORY = "LoRA instead of full fine-tuning, batch_size 1 with gradient_accumulation, and precision: bfloat16"
CHECKPOINT = 1  # schema of what a checkpoint's manifest says


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Prompt and completion pairs of a JSONL file.

    Raises:
        InputError: missing file, a line that is no object, or one without both texts (with its number).
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        wrong = [k for k in ("prompt", "completion") if not isinstance(row.get(k), str) or not row[k].strip()]
        if wrong or set(row) != {"prompt", "completion"}:
            raise InputError(
                f"{path} record {number} has keys {', '.join(sorted(row)) or 'none'}; expected exactly `prompt` and "
                "`completion`, both texts that are not empty."
            )
    return rows


def topic_pairs(items: list[Item], side: str) -> list[dict[str, str]]:
    """Training pairs of one side from a topic's training items."""
    return [{"prompt": item.question, "completion": getattr(item, side)} for item in items]


def measured_prompts_in(pairs: list[dict[str, str]], measured: dict[str, str]) -> list[str]:
    """Ids of measuring items whose question stands among the training prompts. `measured`: id -> question."""
    trained = {normalised(pair["prompt"]) for pair in pairs}
    return [name for name, question in measured.items() if normalised(question) in trained]


def tune(
    run: Run,
    folder: str,
    pairs: list[dict[str, str]],
    recipe: Recipe,
    seed: int,
    hold: Neurons | None,
    anchored: Anchored | HeldMargins | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> None:
    """Train from `folder` and save an adapter (LoRA) or a whole model (full) in the run's folder, in the base's dtype.

    An interrupted run with checkpoints goes on from its last epoch, to the same weights; one with an anchor, whose place
    among its prompts no checkpoint keeps, starts again, as does one in several processes. The manifest is left to the caller.
    `processes`: that take a share of every batch, this one among them (harness/distributed.py); the first saves and proves.
    `sharded`: each has its rows of the weights alone, and the proof is of the files that were saved, read on the CPU.

    Raises:
        InputError: a training example longer than the recipe's max_length (nothing is truncated), too little memory, or a
            folder that cannot be written.
        ProofError: the hold or the anchor did not act, or nothing moved.
    """
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    logging.getLogger("trl").setLevel(logging.ERROR)
    set_seed(seed)
    tokenizer = load_tokenizer(folder)
    base = load_model(folder, torch.float32, device(), shards=processes if sharded else 1)
    saved_dtype = _stored_dtype(folder)
    data = _dataset(pairs, tokenizer, recipe)
    keeper = Hold(base, hold) if hold is not None else None
    anchor = _anchor(base, tokenizer, anchored, recipe, seed, folder) if anchored is not None else None
    if recipe.only and recipe.mode == "full":
        freeze_but(base, recipe.only)
    model = with_lora(base, recipe) if recipe.mode == "lora" else base
    if keeper:
        keeper.attach(model)
    checkpoints = run.path / "checkpoints"
    with quiet():  # it warns of the process group that a live vLLM engine holds; nothing here is distributed
        config = SFTConfig(
            output_dir=str(checkpoints),
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_size // processes,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            lr_scheduler_type="cosine",
            bf16=recipe.precision == "bfloat16",
            use_cpu=device() == "cpu",
            ddp_backend="gloo" if processes > 1 and device() == "cpu" else None,
            seed=seed,
            max_length=recipe.max_length,
            train_sampling_strategy="group_by_length" if recipe.group_by_length else "random",
            completion_only_loss=True,
            gradient_checkpointing=False,
            save_strategy="epoch" if recipe.checkpoints and not anchor and processes == 1 else "no",
            save_total_limit=1,
            logging_steps=1,
            logging_strategy="steps",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            dataset_num_proc=None,
        )
    first = config.process_index == 0
    trainer = (trainer_with(anchor) if anchor else SFTTrainer)(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[*([_Progress(), _Sealed()] if first else []), *([keeper] if keeper else [])],
    )
    _be_quiet(trainer)
    with writable(run.path), enough_memory("Training", LESS_MEMORY):
        trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    if keeper:
        keeper.detach()
    if anchor:
        run.notes["anchor"] = anchor.prove(trainer.model)
    run.notes["loss"] = [round(row["loss"], 4) for row in trainer.state.log_history if "loss" in row]
    run.notes["steps"] = trainer.state.global_step
    with writable(run.path):
        trained = _saved(run.path, trainer.model, folder, recipe.mode, saved_dtype, first, sharded)
        if not first:
            return
        tokenizer.save_pretrained(run.path)
    fresh = load_model(folder, saved_dtype, "cpu" if sharded else device())
    run.notes["moved"] = moved_weights(fresh, trained)
    if hold is not None:
        run.notes["hold"] = {"neurons": len(hold), "site": hold.site, **prove_held(fresh, trained, hold)}
    shutil.rmtree(checkpoints, ignore_errors=True)


def _saved(path: Path, model: Any, folder: str, mode: str, dtype: torch.dtype, first: bool, sharded: bool) -> Any:
    """Write the adapter or the model; the trained model as it will be served, its adapter merged.

    Shards are collected in all processes, and the first reads what it wrote: no process has the whole model.
    """
    if mode == "lora":
        if first:  # peft would collect the base's weights too
            own = {name: value for name, value in model.state_dict().items() if ".lora_" in name}
            model.save_pretrained(path, state_dict=own)
        if not sharded:
            return model.merge_and_unload().to(dtype)
        return merged(load_model(folder, dtype), path)[0] if first else None
    model.to(dtype)
    if first or sharded:
        model.save_pretrained(path)
    return load_model(str(path), dtype) if first and sharded else model


def _anchor(
    base: PreTrainedModel, tokenizer: Any, anchored: Anchored | HeldMargins, recipe: Recipe, seed: int, folder: str
) -> Anchor | MarginAnchor:
    if isinstance(anchored, HeldMargins):
        return MarginAnchor(base, tokenizer, anchored, seed, torch.bfloat16 if recipe.precision == "bfloat16" else None)
    return Anchor(base, tokenizer, anchored, recipe.mode == "lora", seed, weights_hash(folder))


@torch.no_grad()
def moved_weights(base: PreTrainedModel, trained: PreTrainedModel) -> dict[str, float]:
    """How far training moved the weights: share of entries that changed, and the root mean squared change.

    Raises:
        ProofError: no entry changed.
    """
    theirs = dict(trained.named_parameters())
    entries = changed = 0
    squares = 0.0
    for name, old in base.named_parameters():
        difference = theirs[name].float() - old.float()
        entries += difference.numel()
        changed += int((difference != 0).sum())
        squares += float((difference.double() ** 2).sum())
    if not changed:
        raise ProofError(
            "Training changed no weight (in the precision that is saved); raise the learning rate or epochs."
        )
    return {"share_of_weights": changed / entries, "root_mean_square": (squares / entries) ** 0.5}


class _Sealed(TrainerCallback):
    """A checkpoint is believed once its checksums are written, which is last."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_manifest(folder, {"schema": CHECKPOINT, "kind": "checkpoint"})


class _Progress(TrainerCallback):
    """Our own bar, labelled with the experiment's stage."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from harness.progress import bar

        self._bar = bar(total=state.max_steps, initial=state.global_step, what="training", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def _dataset(pairs: list[dict[str, str]], tokenizer: Any, recipe: Recipe) -> Any:
    from datasets import Dataset

    rows = []
    for number, pair in enumerate(pairs, 1):
        if tokenizer.chat_template:
            prompt: Any = [{"role": "user", "content": pair["prompt"]}]
            completion: Any = [{"role": "assistant", "content": pair["completion"]}]
            encoded = tokenizer.apply_chat_template(prompt + completion, return_dict=True)
            length = len(encoded["input_ids"])
        else:
            prompt, completion = pair["prompt"] + "\n", pair["completion"]
            length = len(tokenizer(prompt + completion)["input_ids"]) + 1
        if length > recipe.max_length:
            raise InputError(
                f"Training record {number} has {length} tokens; the recipe's max_length is {recipe.max_length}. "
                "Nothing is truncated: raise max_length or shorten the record."
            )
        rows.append({"prompt": prompt, "completion": completion})
    return Dataset.from_list(rows)


def _stored_dtype(folder: str) -> torch.dtype:
    from harness.models import load_config

    dtype = getattr(load_config(folder), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end and has not changed since.

    Later ones are removed: the trainer keeps one, the latest by its number, and would drop those that it writes itself.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[-1]), reverse=True):
        with suppress(InputError):
            if intact(path).get("schema") == CHECKPOINT:
                return str(path)
        shutil.rmtree(path, ignore_errors=True)
    return None


def _be_quiet(trainer: Any) -> None:
    """Losses go into the manifest; a dict printed at every step helps nobody."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)

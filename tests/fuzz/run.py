"""Fuzz every format that the tool reads, half of the inputs by hypothesis and half by atheris, which follows the coverage.

    make fuzz                                       10,000 inputs per format
    python tests/fuzz/run.py --inputs 500 --format topic --format neurons

Prints a table and writes build/fuzz/fuzz.json. What broke is kept in build/fuzz/findings, and the exit status is 1.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve()
NAMES = (
    *(
        "topic",
        "experiment",
        "recipe",
        "training",
        "ideoinst",
        "statements",
        "choices",
        "choices-csv",
        "pairs",
        "pairs-csv",
    ),
    *("labelled", "neutral-text", "vignettes", "culture", "originals-csv", "concepts", "judge-settings", "label-cache"),
    *("endpoint-reply", "neurons", "adapter", "model-config", "run", "comparison", "localization"),
)
WAYS = ("hypothesis", "atheris")


@click.command(help=__doc__)
@click.option("--inputs", default=10_000, show_default=True, type=click.IntRange(2), help="Per format.")
@click.option("--format", "formats", multiple=True, type=click.Choice(NAMES), help="Default: all.")
@click.option("--out", default=Path("build/fuzz"), show_default=True, type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=os.cpu_count() or 1, show_default="cores", help="Processes at once.")
@click.option("--quick", is_flag=True, help="All formats in one process and by hypothesis alone: no start-up for each.")
@click.option("--child", type=click.Choice(WAYS), hidden=True)
def main(
    inputs: int, formats: tuple[str, ...], out: Path, seed: int, jobs: int, quick: bool, child: str | None
) -> None:
    if child:
        _find_modules()
        (carried_out if child == "hypothesis" else followed)(formats[0], inputs, out, seed)
        return
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "findings", ignore_errors=True)
    if quick:
        _find_modules()
        rows = [carried_out(name, inputs, out, seed) for name in formats or NAMES]
    else:
        asked = [(name, way) for name in formats or NAMES for way in WAYS]
        rows = []
        with ThreadPoolExecutor(jobs) as pool:
            for row in pool.map(lambda pair: _child(*pair, inputs // 2, out, seed), asked):
                click.echo(
                    f"{row['format']} ({row['way']}): {row['inputs']:,} inputs, {row['finding']} findings", err=True
                )
                rows.append(row)
    for row in rows:
        if row.get("died"):
            click.echo(f"{row['format']} ({row['way']}) ended early: {row['died']}")
        for finding in row["findings"]:
            click.echo(f"{row['format']}: {finding}")
    (out / "fuzz.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    raise SystemExit(int(any(row["finding"] or row.get("died") for row in rows)))


def _find_modules() -> None:
    sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent.parent.parent)]


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = ("format", "inputs", "loaded", "refused", "finding", "worst_seconds", "grown_mib")
    click.echo(
        "| format | inputs | loaded | refused | findings | worst, s | memory grown, MiB |\n" + "| --- " * 7 + "|"
    )
    for name in dict.fromkeys(row["format"] for row in rows):
        own = [row for row in rows if row["format"] == name]
        cells = [sum(row[c] for row in own) if c in columns[1:5] else max(row[c] for row in own) for c in columns[1:]]
        click.echo(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")


def _child(name: str, way: str, inputs: int, out: Path, seed: int) -> dict[str, Any]:
    """Each in a process of its own: atheris ends its process, and memory is counted from a clean start."""
    result = out / f"{name}-{way}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(HERE), "--child", way, "--format", name, "--inputs", str(inputs), "--out", str(out)]
    settled = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            [*command, "--seed", str(seed)],
            capture_output=True,
            text=True,
            env={**os.environ, **settled},
            timeout=600 + inputs,
            check=False,
        )
        ended = f"status {done.returncode}: {done.stderr[-1500:]}"
    except subprocess.TimeoutExpired as error:
        ended = f"it did not end in {error.timeout:.0f} s"
    if result.is_file():
        found = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
        return {**found, "way": way}
    none = dict.fromkeys(("inputs", "loaded", "refused", "finding", "worst_seconds", "grown_mib"), 0)
    return {
        "format": name,
        "way": way,
        **none,
        "findings": [],
        "died": ended,
    }


def carried_out(name: str, inputs: int, out: Path, seed: int) -> dict[str, Any]:
    """Inputs that hypothesis draws: damaged files, trees with drawn values in them, and lists of arbitrary bytes."""
    from fuzz.formats import FORMATS
    from fuzz.trees import drawn
    from fuzz.trial import Campaign

    campaign = Campaign(FORMATS[name], out / "findings")
    drawn(campaign.form.seeds(), inputs, seed, campaign.attempt)
    return _finish(campaign, out / f"{name}-hypothesis.json")


def followed(name: str, inputs: int, out: Path, seed: int) -> None:
    """Inputs that atheris makes of those which reached new code; half of its mutations know the format."""
    import atheris

    with atheris.instrument_imports(include=["harness", "plugins"]):
        from fuzz.damage import hurt
        from fuzz.formats import FORMATS, WORKING
        from fuzz.trial import Campaign

        campaign = Campaign(FORMATS[name], out / "findings")
    seeds = campaign.form.seeds()
    files = [(seed_files, file) for seed_files in seeds for file in seed_files]  # an input begins with its number here
    corpus = WORKING / f"corpus-{name}"
    corpus.mkdir(parents=True)
    for number, (seed_files, file) in enumerate(files):
        (corpus / str(number)).write_bytes(bytes([number]) + seed_files[file])

    @_or_die
    def one(data: bytes) -> None:
        if not data:
            return
        seed_files, file = files[data[0] % len(files)]
        campaign.attempt({**seed_files, file: data[1:]})
        if campaign.counts.total() >= inputs:
            _finish(campaign, out / f"{name}-atheris.json")
            shutil.rmtree(WORKING, ignore_errors=True)
            os._exit(0)  # libFuzzer would end the process with its own report

    @_or_die
    def mutated(data: bytes, most: int, drawn_seed: int) -> bytes:
        chance = random.Random(drawn_seed)
        if not data or chance.random() < 0.5:
            return atheris.Mutate(data, len(data))
        return (data[:1] + hurt(files[data[0] % len(files)][1], data[1:], chance))[:most]

    arguments = [
        f"-runs={100 * inputs}",
        f"-seed={seed + 1}",
        "-rss_limit_mb=0",
        "-timeout=60",
        "-max_len=200000",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one, custom_mutator=mutated)
    atheris.Fuzz()


def _or_die(work: Callable[..., Any]) -> Callable[..., Any]:
    """An error of the fuzzer's own ends its process: libFuzzer would wait for ever on its way out."""

    @wraps(work)
    def done(*given: Any) -> Any:
        try:
            return work(*given)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    return done


def _finish(campaign: Any, result: Path) -> dict[str, Any]:
    result.write_text(json.dumps(campaign.result()), encoding="utf-8")
    return campaign.result()


if __name__ == "__main__":
    main()

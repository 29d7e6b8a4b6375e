"""Topics, judges, models, and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli import FILE, FOLDER, answering, main


@main.group()
def models() -> None:
    """Embedded models."""


@models.command("get")
@click.argument("name")
def models_get(name: str) -> None:
    """Make an embedded model's folder (once) and print it.

    \b
    Example:  stance models get smollm2-135m-instruct
    """
    from harness.models import get

    click.echo(str(get(name)))


@models.command("ls")
@answering("print_models")
def models_ls() -> dict[str, Any]:
    """List embedded models and where they are.

    \b
    Example:  stance models ls
    """
    return models_found()


def models_found() -> dict[str, Any]:
    """The embedded models; `folder` is None where one is not made yet."""
    from harness.models import EMBEDDED, cache_folder

    folders = {name: cache_folder() / "models" / name for name in EMBEDDED}
    made = {name: (folder / "config.json").is_file() for name, folder in folders.items()}
    return {"models": [{"name": name, "folder": folders[name] if made[name] else None} for name in EMBEDDED]}


@main.group()
def topics() -> None:
    """Topic files: list, start a new one, check one."""


@topics.command("ls")
@click.option("--topics-dir", type=FOLDER, multiple=True, help="Folder with topic files of your own.")
@answering("print_topics")
def topics_ls(topics_dir: tuple[Path, ...]) -> dict[str, Any]:
    """List every topic with its items and where it stands.

    \b
    Example:  stance topics ls --topics-dir my_topics
    """
    from harness.lmeval.roots import all_roots
    from harness.topics import all_topics

    rows = []
    for topic in all_topics([*all_roots(), *topics_dir]).values():
        held = {"train": topic.split("train"), "measure": topic.split("measure")}
        held |= {key: getattr(topic, key) for key in ("statements", "prompts", "choices")}
        sizes = {key: len(items) for key, items in held.items()}
        rows.append({"topic": topic.topic, "task": topic.task, "control": topic.control, **sizes, "file": topic.path})
    return {"topics": rows}


@topics.command("new")
@click.argument("name")
@click.option("--dir", "folder", type=FOLDER, default=Path(), help="Where to write it. Default: here.")
def topics_new(name: str, folder: Path) -> None:
    """Write a commented topic file NAME.yaml to fill in.

    \b
    Example:  stance topics new climate --dir my_topics
    """
    from harness.topics.new import new_topic

    click.echo(f"Wrote {new_topic(name, folder)}. Fill it in, then: stance topics check {folder / name}.yaml")


@topics.command("check")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print findings as JSON.")
def topics_check(file: Path, as_json: bool) -> None:
    """Judge a topic file: keys, repeated and leaked questions (also against the packaged topics and those in its own
    folder), balance, lengths.

    Exit code 2 when a finding is a problem; advice alone is 0.

    \b
    Example:  stance topics check my_topics/climate.yaml
    """
    from harness.terminal import print_check
    from harness.topics import is_topic_file
    from harness.topics.check import check_topic

    beside = [path.resolve() for path in sorted(file.parent.glob("*.yaml")) if is_topic_file(path)]
    summary, findings = check_topic(file, list(dict.fromkeys([*packaged_topic_files(), *beside])))
    print_check(summary, findings, as_json)
    if any(finding.severity == "problem" for finding in findings):
        raise SystemExit(2)


@topics.command("convert")
@click.argument("data", type=FILE)
@click.option("--dir", "folder", type=FOLDER, required=True, help="Where to write the topic files.")
def topics_convert(data: Path, folder: Path) -> None:
    """Other people's questions as topic files: IDEOINST folders, statement lists, multiple choice, paired prompts.

    \b
    Example:  stance topics convert ideoinst --dir my_topics; lm_eval --include_path my_topics --tasks ideoinst ...
    """
    from harness.sources import convert
    from harness.topics import find_topics

    made = convert(data, folder)
    click.echo(f"Wrote {', '.join(topic.task for topic in find_topics([made]).values())} to {made}.")


def packaged_topic_files() -> list[Path]:
    """Files of the packaged topics, controls included."""
    from harness.lmeval.roots import packaged_root
    from harness.topics import all_topics

    return [topic.path for topic in all_topics([packaged_root()]).values()]


@main.group()
def judge() -> None:
    """Judges of open answers: how often they are right."""


@judge.command("check")
@click.option("--data", type=FOLDER, required=True, help="IDEOINST-like folder: <topic>.jsonl with labelled answers.")
@click.option("--judge", "spec", default="embedded", show_default=True, help="Judges, comma-separated.")
@click.option("--limit", type=click.IntRange(1), help="At most so many records per topic.")
@click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")
def judge_check(data: Path, spec: str, limit: int | None, as_json: bool) -> None:
    """Accuracy, confusion and left/right symmetry of judges on labelled answers, and their speed.

    \b
    Example:  stance judge check --data ideoinst --judge embedded,local:smollm2-135m-instruct
    """
    from harness import judges
    from harness.judges.calibration import calibrate, read_labelled
    from harness.terminal import print_calibration

    labelled = read_labelled(data, limit)
    names = judges.names(spec)
    calibrations = []
    for name in names:
        judging = judges.get(name)
        try:
            calibrations.append(calibrate(judging, labelled))
        finally:
            judging.close()
    print_calibration(calibrations, as_json)


@main.command()
@answering("print_doctor")
def doctor() -> dict[str, Any]:
    """What is installed, and what would run where.

    \b
    Example:  stance doctor --json
    """
    import os
    import platform
    import shutil

    import torch

    from harness import __version__
    from harness.lmeval.roots import all_roots
    from harness.models import cache_folder, device
    from harness.runs import PACKAGES, package_versions
    from harness.topics import find_topics

    cache, versions = cache_folder(), package_versions()
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    return {
        "python": platform.python_version(),
        "packages": {"stance-harness": __version__, **{name: versions.get(name) for name in PACKAGES}},
        "device": device(),
        "processor": torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{os.cpu_count()} cores",
        "cache": {"path": cache, "free_bytes": shutil.disk_usage(place).free},
        **models_found(),
        "topics": list(find_topics(all_roots())),
    }


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a SHELL.

    \b
    To have it in every new shell, add one line:
      bash  to ~/.bashrc:                   eval "$(stance completion bash)"
      zsh   to ~/.zshrc, behind compinit:   eval "$(stance completion zsh)"
      fish  to ~/.config/fish/config.fish:  stance completion fish | source

    \b
    Example:  stance completion bash
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(main, {}, "stance", "_STANCE_COMPLETE").source())


@main.command("tasks-path")
def tasks_path() -> None:
    """The packaged task folder, for: lm_eval --include_path "$(stance tasks-path)".

    \b
    Example:  stance tasks-path
    """
    from harness.lmeval.roots import packaged_root

    click.echo(str(packaged_root()))

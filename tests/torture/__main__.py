"""Kill the demo's steps at random points, carry them on, and compare with a making that nobody disturbed.

    make torture                                      200 points
    .venv/bin/python tests/torture --points 20        fewer
    .venv/bin/python tests/torture --only 17          the 17th again, its folder kept

Processes are forked from one that has imported everything, because that is most of what starting one costs.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import click  # noqa: E402
import study  # noqa: E402
from faults import TIMED, Fault, Operations, lose_unsynced  # noqa: E402

from harness.process import settle  # noqa: E402

WAIT = 1800  # seconds for one making before it counts as stuck; machines are busy at times


@dataclass(frozen=True)
class Undisturbed:
    """The making that others are compared with: what it left, how long it took, and how often it touched files."""

    contents: dict[str, object]
    seconds: float
    changes: int
    syncs: int


@dataclass(frozen=True)
class Outcome:
    """One point. `wrong`: nothing, where it passed; `hit`: whether the fault struck before the study was finished."""

    point: int
    kind: str
    at: float
    hit: bool
    steps: int
    lost: int
    seconds: float
    wrong: list[str]


def forked(work: Callable[[], None], log: Path, wake: tuple[float, int] | None = None) -> int:
    """`work` in a child: its exit code, or minus the signal that ended it. `wake`: after so many seconds, that signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    begun = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        passed = time.monotonic() - begun
        if wake and passed > wake[0]:
            os.kill(child, wake[1])
            wake = None
        if passed > WAIT:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def undisturbed(file: Path, place: Path) -> Undisturbed:
    """Make the study twice, in children: the first says what it imported, the second is as quick as all later ones."""

    def work() -> None:
        operations = Operations(place)
        operations.watch()
        study.make(file, place)
        about = {"changes": operations.changes, "syncs": operations.syncs, "modules": list(sys.modules)}
        (place / "about.json").write_text(json.dumps(about))

    seconds, about = 0.0, {}
    for _ in range(2):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        begun = time.monotonic()
        if code := forked(work, place / "log"):
            raise click.ClickException(
                f"The undisturbed study ended with {code}:\n{(place / 'log').read_text()[-3000:]}"
            )
        seconds = time.monotonic() - begun
        about = json.loads((place / "about.json").read_text())
        import_all(about["modules"])
    return Undisturbed(study.contents(place), seconds, about["changes"], about["syncs"])


def import_all(names: list[str]) -> None:
    """Import here what a child has imported."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in names:
        if name not in sys.modules and name.split(".")[0] not in ("study", "faults"):
            try:
                importlib.import_module(name)
            except Exception:  # made up by a library, or not to be imported alone
                continue
    gc.collect()
    gc.freeze()  # what is imported is no garbage, and need not be looked through again in every child


def tried(point: int, seed: int, file: Path, place: Path, plain: Undisturbed) -> Outcome:
    """Strike once, carry on, compare."""
    chance = random.Random(f"{seed}-{point}")
    fault, begun = Fault.drawn(chance), time.monotonic()
    place.mkdir()

    def disturbed() -> None:
        Operations(place, fault, plain.changes, plain.syncs).watch()
        study.make(file, place)

    sign = signal.SIGINT if fault.kind == "interrupt" else signal.SIGKILL
    ended = forked(disturbed, place / "log", (fault.at * plain.seconds, sign) if fault.kind in TIMED else None)
    lost = lose_unsynced(place, chance) if fault.kind == "power" else 0
    before, wrong = study.finished(place), []
    if ended not in (0, 130, -signal.SIGKILL):
        wrong.append(f"the disturbed study ended with {ended}")
    if code := forked(lambda: study.make(file, place), place / "log"):
        wrong.append(f"carrying on ended with {code}: {(place / 'log').read_text()[-300:]}")
    after = study.finished(place)
    wrong += [f"{name} was made again" for name in before if before[name] != after.get(name)]
    if (place / study.AGAIN).is_file():
        wrong.append("answers that were kept were asked again")
    wrong += list(study.unlike(plain.contents, study.contents(place)))
    hit = ended != 0
    if not wrong:
        shutil.rmtree(place)
    seconds = round(time.monotonic() - begun, 1)
    return Outcome(point, fault.kind, round(fault.at, 4), hit, len(before), lost, seconds, wrong)


def shared(points: list[int], jobs: int, work: Callable[[int], Outcome], results: Path) -> list[Outcome]:
    """`work` on all points by so many processes; one line is printed per point that fails."""
    workers = []
    for job in range(jobs):
        child = os.fork()
        if not child:
            try:
                for point in points[job::jobs]:
                    with results.open("a") as file:
                        file.write(json.dumps(asdict(work(point))) + "\n")
            finally:
                os._exit(0)
        workers.append(child)
    for child in workers:
        os.waitpid(child, 0)
    lines = results.read_text().splitlines() if results.is_file() else []
    return sorted((Outcome(**json.loads(line)) for line in lines), key=lambda outcome: outcome.point)


@click.command()
@click.option("--points", default=200, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Another seed draws other points.")
@click.option("--jobs", type=int, default=lambda: os.cpu_count() or 1, help="Processes at once.")
@click.option("--only", type=int, help="This point alone.")
@click.option(
    "--json", "report", type=click.Path(path_type=Path), default=Path("build/torture.json"), show_default=True
)
def main(points: int, seed: int, jobs: int, only: int | None, report: Path) -> None:
    """Kill the demo's steps at random points, carry them on, compare with an undisturbed making; not 0 where any differs."""
    settle()
    work, begun = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    file = study.write(work)
    study.warm(work)
    plain = undisturbed(file, work / "undisturbed")
    about = f"{plain.changes} file operations, {plain.syncs} syncs, {len(plain.contents)} files"
    click.echo(f"Undisturbed: {plain.seconds:.1f} s, {about}")
    chosen = list(range(points)) if only is None else [only]
    done = shared(chosen, jobs, lambda n: tried(n, seed, file, work / str(n), plain), work / "outcomes.jsonl")
    passed = [outcome for outcome in done if not outcome.wrong]
    click.echo(
        f"{'kind':<12}{'points':>8}{'passed':>8}{'steps finished before, median':>32}{'files cut by power cuts':>26}"
    )
    for kind, count in Counter(outcome.kind for outcome in done).most_common():
        of_kind = [outcome for outcome in done if outcome.kind == kind]
        steps = sorted(outcome.steps for outcome in of_kind)[count // 2]
        good, lost = sum(not outcome.wrong for outcome in of_kind), sum(outcome.lost for outcome in of_kind)
        click.echo(f"{kind:<12}{count:>8}{good:>8}{steps:>32}{lost:>26}")
    for outcome in done:
        if outcome.wrong:
            click.echo(f"point {outcome.point} ({outcome.kind} at {outcome.at}): {'; '.join(outcome.wrong[:4])}")
    seconds = time.monotonic() - begun
    click.echo(f"{len(passed)} of {len(chosen)} passed in {seconds:.0f} s")
    report.parent.mkdir(parents=True, exist_ok=True)
    head = {"schema": 1, "seed": seed, "points": len(chosen), "passed": len(passed), "seconds": round(seconds)}
    report.write_text(json.dumps({**head, "outcomes": [asdict(outcome) for outcome in done]}, indent=1))
    if len(passed) < len(chosen):
        click.echo(f"Folders of those that failed: {work}")
        sys.exit(1)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

"""One input, tried: it loads, or is refused by a documented error in one paragraph. Everything else is a finding."""

from __future__ import annotations

import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.damage import Files
from fuzz.formats import WORKING, Format

from harness.characters import HIDDEN
from harness.errors import InputError, ProofError

SLOWEST = 2.0  # seconds of processor time
STUCK = 20  # seconds by the clock, for what waits instead of working
MOST_MEMORY = 2**30  # bytes beyond what the process has when it begins
LONGEST = 4000  # characters of an error


class TooSlow(BaseException):
    """No `except Exception` of the code under test catches it."""


@dataclass
class Campaign:
    """Tries inputs of one format and keeps count; `kept` is the folder for findings."""

    form: Format
    kept: Path
    counts: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, seed in enumerate(self.form.seeds()):  # everything is imported before time and memory are counted
            folder = written(seed, f"{self.form.name}-seed-{number}")
            outcome, said = self._read(folder)
            shutil.rmtree(folder)
            if outcome != "loaded":
                raise AssertionError(f"{self.form.name}: valid files are not loaded but {outcome}: {said}")
        self.start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number, action in ((signal.SIGPROF, _slow), (signal.SIGALRM, _slow)):
            signal.signal(number, action)
        used = int(
            next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmSize")).split()[1]
        )
        resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + MOST_MEMORY, resource.RLIM_INFINITY))

    def attempt(self, files: Files) -> str:
        """Write the files, read them, and say how that went."""
        folder = written(files, f"{self.form.name}-{self.counts.total()}-{time.monotonic_ns()}")
        begun = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 1.5 * SLOWEST)
        signal.alarm(STUCK)
        try:
            outcome, said = self._read(folder)
        except TooSlow:  # the signal came as reading ended
            outcome, said = "finding", "stopped: too slow"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        taken = time.process_time() - begun
        self.worst = max(self.worst, taken)
        if taken > SLOWEST and outcome != "finding":
            outcome, said = "finding", f"took {taken:.1f} s"
        self.counts[outcome] += 1
        if outcome == "finding" and (place := said.strip().splitlines()[-1][:120]) not in self.findings:
            self.findings[place] = said
            kept = self.kept / f"{self.form.name}-{len(self.findings)}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept)
            (kept / "finding.txt").write_text(said, encoding="utf-8", errors="replace")
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _read(self, folder: Path) -> tuple[str, str]:
        try:
            self.form.read(folder)
            return "loaded", ""
        except (InputError, ProofError) as error:
            text = str(error)
            if "\n" in text or HIDDEN.search(text) or len(text) > LONGEST:
                return "finding", f"an error of {len(text)} characters that is no plain paragraph: {text[:300]!r}"
            return "refused", text
        except TooSlow:
            return "finding", traceback.format_exc(limit=-6) + "\nstopped: too slow"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [
                f"{Path(f.filename).name}:{f.lineno}"
                for f in frames
                if "/harness/" in f.filename or "/plugins/" in f.filename
            ]
            return (
                "finding",
                f"{traceback.format_exc(limit=-8)}\n{type(error).__name__} at {ours[-1] if ours else 'the fuzzer'}",
            )

    def result(self) -> dict[str, Any]:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.start) / 1024
        return {
            "format": self.form.name,
            "inputs": self.counts.total(),
            **{name: self.counts[name] for name in ("loaded", "refused", "finding")},
            "worst_seconds": round(self.worst, 3),
            "grown_mib": round(grown, 1),
            "findings": list(self.findings),
        }


def written(files: Files, name: str) -> Path:
    """A folder of these files, under a name that no input had."""
    folder = WORKING / name
    folder.mkdir(parents=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return folder


def _slow(*_: object) -> None:
    raise TooSlow

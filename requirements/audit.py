"""Known vulnerabilities among the locked packages, by pip-audit: part of `make check`.

    python requirements/audit.py                every requirements/*.txt that pins packages

Exit status 1 when a locked version has a known vulnerability that IGNORED does not explain. Where the advisory service cannot
be reached nothing was audited, and that is said instead of failing: a machine without a network can check everything else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = ("cpu.txt", "gpu.txt", "torch-cpu.txt", "docs.txt")
SECONDS = 300
# Advisory -> why it does not matter here; an entry that no longer applies is reported.
IGNORED: dict[str, str] = {}


@dataclass(frozen=True)
class Vulnerability:
    """One advisory about one locked package."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        mended = f"mended in {', '.join(self.fixed)}" if self.fixed else "no release mends it"
        return f"{self.package} {self.version}: {', '.join(self.names)}; {mended}"


class NotAudited(Exception):  # noqa: N818 (an outcome, not an error)
    """Nothing is known about the packages; the text says why."""


def ask(file: Path, command: Sequence[str] = (sys.executable, "-m", "pip_audit")) -> list[Vulnerability]:
    """pip-audit's answer about the pins of one file.

    Raises:
        NotAudited: it is not installed, did not end, or could not reach the advisory service.
    """
    options = (
        "--requirement",
        str(file),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    )
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAudited(str(error)) from None
    try:
        held = json.loads(done.stdout)["dependencies"]
        if unknown := [one["name"] for one in held if "vulns" not in one]:
            # It calls a package that its service says nothing of skipped, and ends as if all were well.
            if len(unknown) == len(held) or not held:
                raise NotAudited("the advisory service knows none of the packages, or cannot be reached")
            print(f"not audited: {', '.join(unknown)} of {file.name}")
        return [
            Vulnerability(one["name"], one["version"], (found["id"], *found["aliases"]), tuple(found["fix_versions"]))
            for one in held
            for found in one.get("vulns", [])
        ]
    except (ValueError, KeyError, TypeError):
        last = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise NotAudited(f"pip-audit ended with status {done.returncode}: {last[0][:300]}") from None


def audit(files: Sequence[Path], command: Sequence[str] = (sys.executable, "-m", "pip_audit")) -> int:
    """Ask about every file and print what was found; the exit status."""
    found: list[Vulnerability] = []
    for file in files:
        try:
            found += ask(file, command)
        except NotAudited as reason:
            print(f"not audited: {file.name} and what follows it ({reason})")
            break
    else:
        print(f"audited: {', '.join(file.name for file in files)}")
        if stale := set(IGNORED) - {name for one in found for name in one.names}:
            print(f"no longer needed in IGNORED of requirements/audit.py: {', '.join(sorted(stale))}")
    known = list(dict.fromkeys(one for one in found if not set(one.names) & set(IGNORED)))
    for one in known:
        print(f"vulnerable: {one}")
    return int(bool(known))


if __name__ == "__main__":
    sys.exit(audit([HERE / name for name in FILES]))

"""A quick look with the fuzzers of tests/fuzz: so many inputs of every format load, or are refused as documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "fuzz" / "run.py"
INPUTS = 100  # per format


@pytest.mark.timeout(900)
def test_every_format_loads_or_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--quick", "--inputs", str(INPUTS), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    rows = json.loads((tmp_path / "fuzz.json").read_text())
    assert {row["inputs"] for row in rows} == {INPUTS} and len(rows) > 20
    # Damage that is always refused, or never, would show nothing.
    assert all(row["refused"] > 0 for row in rows) and sum(row["loaded"] > 0 for row in rows) > 20


def test_a_finding_is_kept_and_ends_with_another_status(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from fuzz.formats import Format\n"
        "from fuzz.trial import Campaign\n"
        "def read(folder):\n"
        "    data = (folder / 'a').read_bytes()\n"
        "    if data == b'break': raise KeyError('x')\n"
        "    while data == b'hang': pass\n"
        "    if data == b'grow': bytearray(3 * 2**30)\n"
        "made = Campaign(Format('x', lambda: [{'a': b'fine'}], read), Path(sys.argv[3]))\n"
        "print([made.attempt({'a': data}) for data in (b'fine', b'break', b'hang', b'grow')], len(made.findings))\n"
    )
    arguments = [str(RUN.parent.parent), str(RUN.parent.parent.parent), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "['loaded', 'finding', 'finding', 'finding'] 3\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1", "x-2", "x-3"]
    assert "KeyError" in (tmp_path / "x-1" / "finding.txt").read_text()
    assert (tmp_path / "x-2" / "a").read_bytes() == b"hang"

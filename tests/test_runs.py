from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from harness.errors import InputError
from harness.runs import load_measurement, open_run, save_measurement


def test_a_run_is_complete_when_its_manifest_is_there(tmp_path: Path) -> None:
    run = open_run(tmp_path / "r", "tune", {"a": 1})
    assert not run.complete
    run.finish()
    again = open_run(tmp_path / "r", "tune", {"a": 1})
    assert again.complete and again.manifest["spec"] == {"a": 1}


def test_another_spec_in_the_same_folder_names_what_differs(tmp_path: Path) -> None:
    open_run(tmp_path / "r", "tune", {"a": 1, "b": 2}).finish()
    with pytest.raises(InputError, match=r"a: 1 there, 3 now.*Nothing is overwritten"):
        open_run(tmp_path / "r", "tune", {"a": 3, "b": 2})


def test_a_file_in_the_way_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("")
    with pytest.raises(InputError, match="Cannot write to"):
        open_run(tmp_path / "r", "tune", {})


def test_a_tune_is_no_measurement(tmp_path: Path) -> None:
    open_run(tmp_path / "r", "tune", {}).finish()
    with pytest.raises(InputError, match="holds a tune"):
        load_measurement(tmp_path / "r")


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is not readable"):
        load_measurement(tmp_path)


def test_a_measurement_without_todays_columns_is_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path / "old", "measure", {})
    save_measurement(run, {}, pd.DataFrame({"topic": ["race"], "side": [""]}))
    with pytest.raises(InputError, match=r"no column .*options.*Remove .*old and give its command again"):
        load_measurement(run.path)

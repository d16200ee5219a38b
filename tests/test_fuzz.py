"""A short, fixed run of the fuzzer (`python -m tests.fuzz` runs longer), and all that it once found."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests import fuzz


QUICK = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
FILES = fuzz.base_files()


@pytest.mark.parametrize("path", fuzz.kept_seeds(), ids=lambda path: path.stem)
def test_what_failed_once(path: Path, tmp_path: Path) -> None:
    fuzz.try_file(path.read_bytes(), tmp_path)


@pytest.mark.timing
@pytest.mark.parametrize("path", fuzz.kept_seeds(), ids=lambda path: path.stem)
def test_what_took_long_once(path: Path, tmp_path: Path) -> None:
    began = time.process_time()
    fuzz.try_file(path.read_bytes(), tmp_path)
    assert time.process_time() - began < fuzz.MAX_SECONDS


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    expected = "refused" if "complex" in name else "read"
    assert fuzz.try_file(FILES[name], tmp_path) == expected


@QUICK
@given(st.sampled_from(sorted(FILES)), fuzz.damages())
def test_damaged_files(tmp_path: Path, name: str, plan: list[fuzz.Damage]) -> None:
    fuzz.try_file(fuzz.damaged(FILES[name], plan), tmp_path)


@QUICK
@given(
    arrays.arrays(
        st.one_of(
            arrays.integer_dtypes(),
            arrays.unsigned_integer_dtypes(),
            arrays.floating_dtypes(),
            arrays.boolean_dtypes(),
        ),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=12),
    )
)
def test_arrays(values: np.ndarray) -> None:
    fuzz.try_array(values)

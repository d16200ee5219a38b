"""What is no regular file is refused wherever a file is named, and nothing waits for it."""

from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.utils.files import check_input

from .conftest import NO_FILES, refusal


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_regular_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    NO_FILES[kind](path)
    with pytest.raises(RSMoEError, match="a.tif is (not a regular file|a folder)"):
        check_input(path, "an image")


@pytest.mark.parametrize("kind", NO_FILES)
def test_as_an_image(kind: str, tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "a.png"
    NO_FILES[kind](path)
    what = "holds no images" if kind == "folder" else "is not a regular file"
    output = ("--output", tmp_path / "out.parquet") if kind == "folder" else ()
    assert what in refusal("caption", path, "--model", checkpoint, *output)

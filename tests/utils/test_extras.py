"""A missing library says which extra brings it; a broken one says what is broken."""

import sys
from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.utils.extras import require


def test_an_installed_module_is_given() -> None:
    import json.decoder

    assert require("json.decoder", "geo") is json.decoder


@pytest.mark.parametrize(
    ("module", "text"), [("no_such_library", "no_such_library"), ("no_such.part", "no_such.part")]
)
def test_a_missing_module_names_its_extra(module: str, text: str) -> None:
    with pytest.raises(RSMoEError) as raised:
        require(module, "geo")
    assert str(raised.value) == f'this needs {text}, which is not installed: pip install "rsmoe[geo]"'


def test_a_module_whose_own_needs_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import its_missing_need")
    (tmp_path / "broken_one.py").write_text("raise OSError('no shared object')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RSMoEError, match="needs half_installed, and that its_missing_need, which is not installed"):
        require("half_installed", "ray")
    with pytest.raises(OSError, match="no shared object"):  # not missing: its own words help more
        require("broken_one", "ray")

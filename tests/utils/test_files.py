"""Where downloads and features are kept."""

from pathlib import Path

from modeling_rsmoe.utils import files


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    assert files.cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "elsewhere"))
    assert files.cache_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("RSMOE_CACHE")
    assert files.cache_folder() == Path.home() / ".cache" / "rsmoe"

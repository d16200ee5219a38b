"""A log of finished work: what a stopped run has written is there for the next, and only for the same settings."""

import json
from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference.resume import KeyedLog, read_log


def key_of(line):
    return line["tile"]


def log(path, **settings):
    return KeyedLog(path, settings or {"tile": 512}, key_of)


def test_lines_are_there_again(tmp_path):
    path = tmp_path / "new" / "a.partial"
    first = log(path)
    first.add([{"tile": 0, "text": "a ship é"}, {"tile": 1, "text": "b"}])
    first.add([{"tile": 2, "text": "c"}])
    again = log(path)
    assert again.lines == first.lines and list(again.lines) == [0, 1, 2]
    again.remove()
    assert not path.exists() and log(path).lines == {}


def test_a_line_that_was_cut_off_is_written_again(tmp_path):
    path = tmp_path / "a.partial"
    log(path).add([{"tile": 0}, {"tile": 1}])
    content = path.read_bytes()
    path.write_bytes(content[:-4])  # killed while writing
    again = log(path)
    assert list(again.lines) == [0]
    again.add([{"tile": 1}])
    assert path.read_bytes() == content
    path.write_bytes(content[:5])  # before the settings were there
    assert log(path).lines == {} and not path.exists()


def test_other_settings_are_named(tmp_path):
    path = tmp_path / "a.partial"
    log(path, tile=512, model="nano").add([{"tile": 0}])
    with pytest.raises(RSMoEError, match=r"run with other settings \(tile: 512, now 256\)"):
        log(path, tile=256, model="nano")
    with pytest.raises(RSMoEError, match=r"\(model: \"nano\", now null\)"):
        log(path, tile=512)


@pytest.mark.parametrize(
    "content", ['{"text": "a"}\n', "no JSON\n", '["tile"]\n', '{"settings": {"tile": 512}}\n{"a": 1}\n']
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.partial"
    path.write_text(content)
    with pytest.raises(RSMoEError, match="a.partial.*no (line of this kind|unfinished run)"):
        log(path)
    assert path.read_text() == content
    (tmp_path / "folder").mkdir()
    with pytest.raises(RSMoEError, match="is a folder, not a file of finished work"):
        log(tmp_path / "folder")


def test_a_log_of_another_source_has_no_settings(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps({"tile": tile}) + "\n" for tile in (3, 1)))
    assert read_log(path, key_of) == (None, {3: {"tile": 3}, 1: {"tile": 1}})


def test_without_a_file_lines_are_kept_in_memory():
    memory = KeyedLog(None, {}, key_of)
    memory.add([{"tile": 7}])
    memory.remove()
    assert memory.lines == {7: {"tile": 7}}


def test_a_long_setting_is_shown_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    before = {"generation": {"prompt": "same " * 50 + "old", "beams": 1}}
    KeyedLog(path, before, lambda line: line["key"]).add([{"key": 1}])
    now = {"generation": {"prompt": "same " * 50 + "new", "beams": 1}}
    with pytest.raises(RSMoEError, match=r"\(generation.prompt: \.\.\..*same old\", now \.\.\..*same new\"\)"):
        KeyedLog(path, now, lambda line: line["key"])

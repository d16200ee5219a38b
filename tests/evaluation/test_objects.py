"""Faithfulness and coverage: which words mention which class, and the shares of those."""

import json
from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.objects import ObjectLabels, mentions, read_objects, score_mentions


CLASSES = ("airplane", "buildings", "cars", "chaparral", "court", "dock", "grass", "pavement", "sand", "sea", "ship")
CLASSES += ("tanks", "trees", "water")


def labels(present: str, absent: str) -> ObjectLabels:
    return ObjectLabels(frozenset(present.split()), frozenset(absent.split()))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Many boats are in a port near some houses .", "ship dock buildings"),
        ("An aircraft, and two planes on the runway.", "airplane pavement"),
        ("Some buses in a parking lot beside two tennis courts", "cars pavement court"),
        ("green trees and a lawn around the factory building", "trees grass buildings"),
        ("white waves between the ocean and the beaches .", "sea water sand"),
        ("two storage tanks by a river", "tanks water"),
        ("the airport has several seaside treelines and watery carports", ""),  # within other words
        ("a swimming pool", ""),
        ("", ""),
    ],
)
def test_mentions(text: str, expected: str) -> None:
    assert mentions(text, CLASSES) == set(expected.split())


def test_a_class_of_ones_own_is_mentioned_by_its_name() -> None:
    assert mentions("Two solar panels on a roof.", ["solar-panel", "wind-turbine"]) == {"solar-panel"}


def test_shares() -> None:
    """Of five mentioned classes three are there; of four that are there three are mentioned. A class that nobody
    labelled counts for nothing."""
    known = [labels("ship dock", "trees cars"), labels("buildings trees", "ship cars"), labels("", "cars")]
    scored = score_mentions(known, ["boats and trees in a port by the sea", "a house", "a car"])
    assert scored.scores["faithfulness"].value == pytest.approx(60.0)
    assert scored.scores["coverage"].value == pytest.approx(75.0)
    assert all(0 <= score.low <= score.value <= score.high <= 100 for score in scored.scores.values())
    assert scored.each == [
        {"faithfulness": pytest.approx(200 / 3), "coverage": 100.0},
        {"faithfulness": 100.0, "coverage": 50.0},
        {"faithfulness": 0.0},
    ]
    assert scored.notes == {"faithfulness": "by the object labels of 3 images, as coverage is"}
    silent = score_mentions(known, ["", "", ""])
    assert silent.scores["coverage"].value == 0 and silent.missing == {
        "faithfulness": "no text mentions a labelled object"
    }


def write(folder: Path, *lines: dict[str, object]) -> Path:
    (folder / "objects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_labels_of_a_data_folder(tmp_path: Path) -> None:
    """Where the sea is labelled there is water; classes that words do not fit are dropped, of UCM sand too."""
    assert read_objects(tmp_path) == {}
    shore = {"present": ["sea", "sand"], "absent": ["water", "field", "mobile-home", "cars"]}
    lines = [{"image": f"{name}.png", "dataset": name, **shore} for name in ("RSICD", "UCM-Captions")]
    found = read_objects(write(tmp_path, *lines))
    assert found == {
        tmp_path / "RSICD.png": labels("sea sand water", "cars"),
        tmp_path / "UCM-Captions.png": labels("sea water", "cars"),
    }


@pytest.mark.parametrize(
    "line, said",
    [
        ({"image": "a.png", "present": ["sea"]}, r"objects.jsonl:1: object labels are an object with image"),
        ({"image": "a.png", "present": "sea", "absent": []}, "lists of classes"),
        ({"image": "a.png", "present": ["sea"], "absent": ["sea"]}, '"sea" is both present and absent'),
    ],
)
def test_wrong_labels_are_refused(line: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(RSMoEError, match=said):
        read_objects(write(tmp_path, line))


def test_an_image_that_stands_twice(tmp_path: Path) -> None:
    line = {"image": "a.png", "present": [], "absent": ["sea"]}
    with pytest.raises(RSMoEError, match='objects.jsonl:2: image "a.png" stands twice'):
        read_objects(write(tmp_path, line, line))

"""Faithfulness and coverage: which words mention which class, and the shares of those."""

from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.data.labels import ObjectRecord
from modeling_rsmoe.evaluation.objects import ObjectLabels, mentions, object_labels, score_mentions


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
    silent = score_mentions(known, ["", "", ""])
    assert silent.scores["coverage"].value == 0 and silent.missing == {
        "faithfulness": "no text mentions a labelled object"
    }


def test_labels_that_texts_are_compared_with() -> None:
    """Where the sea is labelled there is water; classes that words do not fit are dropped, of UCM sand too."""
    shore = {"present": ("sea", "sand"), "absent": ("water", "field", "mobile-home", "cars")}
    records = [ObjectRecord(Path(f"/{name}.png"), name, "test", **shore) for name in ("RSICD", "UCM-Captions")]
    assert object_labels(records) == {
        Path("/RSICD.png"): labels("sea sand water", "cars"),
        Path("/UCM-Captions.png"): labels("sea water", "cars"),
    }
    with pytest.raises(RSMoEError, match="the objects of /RSICD.png stand twice in objects.jsonl"):
        object_labels([records[0], records[0]])

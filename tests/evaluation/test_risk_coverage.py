"""examples/risk_coverage.py: the curve, the AUROC and the picture, on captions whose order is known."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from runpy import run_path

import pytest


EXAMPLE = (Path(__file__).parents[2] / "examples" / "risk_coverage").with_suffix(".py")
CAPTIONS = [("a ship .", 0.9), ("a ship and a car .", 0.5), ("many trees .", 0.4), ("a house .", 0.1)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    of_image = {"dataset": "A", "split": "test", "present": ["ship", "trees"], "absent": ["cars", "buildings"]}
    labels = [{"image": f"{place}.png", **of_image} for place in range(4)]
    for label in labels:
        (tmp_path / str(label["image"])).touch()
    lines = [
        {"image": f"{i}.png", "dataset": "A", "caption": text, "confidence": s, "score": 1 - s}
        for i, (text, s) in enumerate(CAPTIONS)
    ]
    for name, rows in (("objects", labels), ("predictions", lines)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_curve_and_auroc(data: Path) -> None:
    """Confidences 0.9 and 0.4 are of right captions, 0.5 and 0.1 of wrong ones: of four pairs three are in order."""
    module = run_path(str(EXAMPLE))
    rows = module["judged"](data / "predictions.jsonl", data)["A"]
    assert rows.tolist() == [[0.9, 1, 0], [0.5, 2, 1], [0.4, 1, 0], [0.1, 1, 1]]
    coverage, risk = module["risk_coverage"](rows)
    assert coverage.tolist() == [25, 50, 75, 100] and risk == pytest.approx([0, 100 / 3, 25, 40])
    assert module["judged"](data / "predictions.jsonl", data, "score")["A"][:, 0] == pytest.approx(
        [0.1, 0.5, 0.6, 0.9]
    )


def test_picture_and_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main, output = run_path(str(EXAMPLE))["main"], data / "new.svg"
    words = [str(data / "predictions.jsonl"), "--data", str(data), "--output", str(output)]
    assert main(words) == 0
    # Each of four bins holds one caption, away from its truth by 0.1, 0.5, 0.6 and 0.1.
    table = capsys.readouterr().out
    assert "| A | 4 | 50.0 | 75.0 [" in table and table.rstrip().endswith("] | 32.5 |")
    assert ElementTree.parse(output).getroot().tag.endswith("svg")
    first = output.read_bytes()
    assert main(words) == 0 and output.read_bytes() == first


def test_predictions_without_confidences(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "predictions.jsonl").write_text('{"image": "0.png", "caption": "a ship"}\n')
    main = run_path(str(EXAMPLE))["main"]
    assert main([str(data / "predictions.jsonl"), "--data", str(data)]) == 2
    assert "has a confidence and labels in" in capsys.readouterr().err

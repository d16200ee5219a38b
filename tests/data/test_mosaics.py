"""Mosaics of scenes: what is drawn, and answers that can be read off the image."""

import json
import re
from collections import Counter

import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.cli import app
from modeling_rsmoe.data.folder import add_mosaics
from modeling_rsmoe.data.mosaics import PLACES
from modeling_rsmoe.data.records import read_questions


COLORS = {"Forest": (0, 90, 0), "River": (0, 0, 200), "Highway": (90, 90, 90), "Beach": (200, 180, 90)}
ONE = {**{scene: PLACES[scene][0] for scene in list(COLORS)[:3]}, "Beach": "a beach area"}
MANY = {**{scene: PLACES[scene][1] for scene in list(COLORS)[:3]}, "Beach": "beach areas"}


@pytest.fixture
def folder(tmp_path):
    lines = []
    for scene, color in COLORS.items():
        for split in ("train", "test"):
            name = f"{scene}-{split}.png"
            # A tile of another size is fitted to the first.
            Image.new("RGB", (12, 12) if scene == "River" else (8, 8), color).save(tmp_path / name)
            lines.append({"image": name, "dataset": "Tiny", "split": split, "scene": scene})
    (tmp_path / "scenes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = {"image": "Beach-test.png", "dataset": "Other", "split": "test", "question": "Is it sunny?"}
    (tmp_path / "vqa.jsonl").write_text(json.dumps({**other, "question_type": "presence", "answer": "yes"}) + "\n")
    return tmp_path


def seen(image, side: int) -> Counter:
    """The scenes of a mosaic, by the colors in the middle of its tiles."""
    pixels, tile = Image.open(image), Image.open(image).width // side
    scenes = {color: scene for scene, color in COLORS.items()}
    return Counter(
        scenes[pixels.getpixel((x * tile + tile // 2, y * tile + tile // 2))] for x in range(side) for y in range(side)
    )


@pytest.mark.parametrize("side", [2, 3])
def test_answers_are_what_the_mosaic_shows(folder, side: int) -> None:
    """A second time, the same are there; other questions stay."""
    for _ in range(2):
        arguments = ["data", "mosaics", str(folder), "--number", "20", "--side", str(side)]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0 and "Tiny-mosaics train, 100 records" in done.output
        questions = read_questions(folder)
        assert Counter(one.dataset for one in questions) == {"Tiny-mosaics": 200, "Other": 1}
    kinds = Counter((one.question_type, one.answer) for one in questions if one.dataset == "Tiny-mosaics")
    assert kinds["presence", "yes"] == kinds["presence", "no"] == kinds["comp", "yes"] == kinds["comp", "no"] == 40
    shown = {}
    for one in (one for one in questions if one.dataset == "Tiny-mosaics"):
        counts = shown.setdefault(one.image, seen(one.image, side))
        assert one.image.name.startswith(one.split)
        if one.question_type == "presence":
            (scene,) = [scene for scene, words in ONE.items() if one.question == f"Is there {words}?"]
            assert one.answer == ("yes" if counts[scene] else "no")
        elif one.question_type == "comp":
            first, second = re.fullmatch(r"Are there more (.*) than (.*)\?", one.question).groups()
            first, second = (next(scene for scene in MANY if MANY[scene] == words) for words in (first, second))
            assert counts[first] != counts[second] and one.answer == (
                "yes" if counts[first] > counts[second] else "no"
            )
        else:
            (scene,) = [scene for scene, words in MANY.items() if one.question == f"How many {words} are there?"]
            assert one.answer == str(counts[scene])
    assert len(shown) == 40 and len({tuple(sorted(counts.items())) for counts in shown.values()}) > 5
    assert {len(counts) for counts in shown.values()} == {1, 2, 3}  # never all four: one can be asked about


def test_what_cannot_be_drawn_is_refused(folder) -> None:
    (folder / "scenes.jsonl").write_text((folder / "scenes.jsonl").read_text().splitlines()[0] + "\n")
    before = (folder / "vqa.jsonl").read_text()
    with pytest.raises(RSMoEError, match="Tiny train has one scene alone, Forest; a question needs another"):
        add_mosaics(folder, 2)
    (folder / "scenes.jsonl").unlink()
    with pytest.raises(RSMoEError, match="has no scenes to make mosaics of; add scenes.jsonl"):
        add_mosaics(folder, 2)
    assert (folder / "vqa.jsonl").read_text() == before

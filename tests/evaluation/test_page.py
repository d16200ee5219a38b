"""The HTML page: what stands in it, in which order, that it needs no network and runs nothing that stands in texts."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import report
from modeling_rsmoe.evaluation.page import ScoredItem, write_page
from modeling_rsmoe.evaluation.scores import Score, Scored
from modeling_rsmoe.evaluation.vqa import score_answers


ATTACK = "<script>alert(1)</script> \"><img src='http://x/y'> &amp; {{ 7 * 7 }}"
SCORED = Scored({"BLEU-1": Score(61.7, 60.1, 63.2), "CIDEr-D": Score(153.84, 146.1, 161.94)}, [{}])


class Page(HTMLParser):
    """The elements of a page with their attributes and text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        Image.new("RGB", (400, 300), (40 * index, 90, 90)).save(tmp_path / f"{index}.png")
    return tmp_path


def page(folder: Path, made: report.Report, items: list[ScoredItem], **values: Any) -> Page:
    write_page(made, items, folder, folder / "page.html", **values)
    return Page(folder / "page.html")


def captioning(folder: Path, datasets: tuple[str, ...] = ("RSICD",), caption: str = "A river .") -> tuple[Any, Any]:
    """A report and six items for each dataset, item `i` with CIDEr-D 10 * i."""
    results, items = [], []
    for dataset in datasets:
        records = [
            CaptionRecord(folder / f"{index}.png", dataset, "val", ("A road .", "A road .", "A lane ."))
            for index in range(6)
        ]
        results.append(
            report.make_result(
                records,
                folder,
                SCORED,
                dataset=dataset,
                split="val",
                limit=None,
                baselines={"constant": SCORED},
                seconds=3.0,
            )
        )
        for index in range(6):
            prediction = {
                "image": f"{index}.png",
                "dataset": dataset,
                "split": "val",
                "caption": caption,
                "router_prompts": {"theme": "Which theme?", "object": f"Objects {index}?"},
                "expert_texts": {"theme": "A theme .", "object": ""},
            }
            items.append(ScoredItem(prediction, records[index].captions, {"CIDEr-D": 10.0 * index}))
    checkpoint: report.CheckpointEntry = {"name": "tiny", "sha256": "0" * 64}
    made = report.make_report(
        "captioning", "full", checkpoint, {"num_beams": 1}, results, machine="cpu", seconds=3, peak_memory_bytes=1
    )
    return made, items


def test_page_has_scores_images_and_every_step(folder: Path) -> None:
    made, items = captioning(folder)
    found = page(folder, made, items[::-1])
    assert [card["data-worst"] for card in found.all("article")] == list("012345")
    assert [card["data-best"] for card in found.all("article")] == list("543210")
    assert [picture["alt"] for picture in found.all("img")] == [f"Image {index}.png: A road ." for index in range(6)]
    assert all((picture["width"], picture["height"]) == ("256", "192") for picture in found.all("img"))
    for text in (
        "tiny, captioning",
        "RSICD, val (6 images)",
        "153.8 [146.1, 161.9]",
        "the most frequent training caption",
        "A road . 2 times A lane .",
        "theme Which theme? A theme . object Objects 3? (nothing)",
        "CIDEr-D 30.0",
        "num_beams 1",
        "0" * 64,
    ):
        assert text in found.text, text


def test_page_shows_the_worst_and_the_best_of_each_dataset(folder: Path) -> None:
    made, items = captioning(folder, ("RSICD", "UCM-Captions"))
    cards = page(folder, made, items, worst=2, best=4).all("article")
    shown = [(card["data-dataset"], card.get("data-worst"), card.get("data-best")) for card in cards]
    datasets = {name for name, _, _ in shown}
    assert datasets == {"RSICD", "UCM-Captions"} and len(shown) == 6
    for name in datasets:
        of_name = [(worst is not None, best is not None) for dataset, worst, best in shown if dataset == name]
        assert of_name == [(True, False), (False, True), (False, True)]


def test_page_needs_no_network_and_runs_nothing_of_its_texts(folder: Path) -> None:
    made, items = captioning(folder, (ATTACK,), caption=ATTACK)
    made["settings"] = {"instruction": ATTACK}
    made["results"][0]["missing"] = {"SPICE": ATTACK}
    found = page(folder, made, items)
    assert ATTACK.split()[0] in found.text and "{{ 7 * 7 }}" in found.text
    assert len(found.all("script")) == 1 and "src" not in found.all("script")[0]
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in found.all("img"))
    assert len(found.all("img")) == 6 and not found.all("link") and not found.all("iframe")
    content = (folder / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", content)
    assert "default-src 'none'" in content


def test_page_of_questions(folder: Path) -> None:
    kinds = [("How many roads?", "count", "7"), ("How many farms?", "count", "5"), ("Is it rural?", "presence", "yes")]
    questions = [QuestionRecord(folder / "0.png", "RSVQA-LR", "val", *kind) for kind in kinds]
    questions.append(QuestionRecord(folder / "0.png", "RSIEval", "val", "How many ships?", "quantity", "Two ships."))
    answers = ["nine", "5", "", "There are two."]
    scored = score_answers(questions, answers, samples=5)
    result = report.make_result(
        questions, folder, scored, dataset="RSVQA-LR", split="val", limit=4, baselines={}, seconds=None
    )
    made = report.make_report("vqa", "constant", None, {}, [result], machine="cpu", seconds=0, peak_memory_bytes=0)
    items = [
        ScoredItem(
            {"image": "0.png", "dataset": one.dataset, "split": "val", "question": one.question, "answer": answer},
            [one.answer],
            each,
        )
        for one, answer, each in zip(questions, answers, scored.each, strict=True)
    ]
    text = page(folder, made, items).text
    order = [text.index(one) for one in ("Is it rural?", "How many roads?", "How many farms?")]
    assert order == sorted(order)
    assert "Is it rural? Answer (nothing) wrong Expected yes" in text
    assert "How many roads? Answer nine right within its range Expected 7" in text
    assert "How many farms? Answer 5 right Expected 5" in text
    assert "How many ships? Answer There are two. right as it is read Expected Two ships." in text
    assert "4 questions about 1 image, limited to 4" in text


def test_page_of_nothing_is_refused(folder: Path) -> None:
    made, _ = captioning(folder)
    with pytest.raises(RSMoEError, match="no item to show"):
        write_page(made, [], folder, folder / "page.html")

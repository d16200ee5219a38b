"""One HTML page that shows an evaluation with its images: self-contained, it opens from the file without a network.

What a model wrote and what people wrote about images is untrusted text: the template escapes all of it.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.files import write_whole
from ..utils.html import COLORS, data_url, render
from .markdown import data_note, difference_rows, headline, rows_of, shown_scores
from .report import HEADLINE_SCORE, Report
from .vqa import SENTENCES


THUMBNAIL_SIDE = 256  # pixels of the longer side
SHOWN = 50  # worst and as many best items; with images of about 20 kB the page stays below 5 MB


@dataclass(frozen=True)
class ScoredItem:
    """One captioned image or answered question."""

    prediction: Mapping[str, Any]  # a line of the predictions file; its image is relative to the data folder
    references: Sequence[str]  # the published captions, or the one published answer
    scores: Mapping[str, float]  # of this item alone


def write_page(
    report: Report,
    items: Sequence[ScoredItem],
    data_folder: str | Path,
    output: str | Path,
    worst: int = SHOWN,
    best: int = SHOWN,
) -> None:
    """Write the page of a report: scores and settings, then items with their images, the worst first.

    Args:
        report: whose results are shown above the items.
        items: everything that was scored, of all datasets of the report, in any order.
        data_folder: which the items' images are relative to.
        output: the HTML file.
        worst: how many of the worst items to show; several datasets share this number evenly.
        best: likewise of the best items.

    Raises:
        RSMoEError: when there is no item, or an image cannot be read.
    """
    if not items:
        raise RSMoEError("no item to show; give the predictions that were scored")
    sorted_by = HEADLINE_SCORE[report["task"]]
    places = {"worst": _places(items, worst, sorted_by, 1), "best": _places(items, best, sorted_by, -1)}
    shown = sorted(places["worst"] | places["best"], key=lambda index: _rank(items[index], sorted_by, 1))
    experts = dict.fromkeys(name for item in items for name in item.prediction.get("expert_texts", {}))
    colors = {name: index % len(COLORS) for index, name in enumerate(experts)}
    text = render(
        Path(__file__).with_name("page.html"),
        report=report,
        datasets=list(dict.fromkeys(item.prediction["dataset"] for item in items)),
        differences=difference_rows(report),
        tables=[_table(report, index) for index in range(len(report["results"]))],
        cards=[
            _card(items[index], Path(data_folder), colors) | {name: place.get(index) for name, place in places.items()}
            for index in shown
        ],
        total=len(items),
        sorted_by=sorted_by,
        sentences=SENTENCES,
    )
    write_whole(output, text)


def _table(report: Report, index: int) -> dict[str, Any]:
    """A result for the template: its headline, the names of the scores and a row for each system."""
    result = report["results"][index]
    rows = rows_of([(report, result)])
    names = shown_scores(row.scores for row in rows)
    shown = {"headline": headline(result, report["task"]), "note": data_note(result)}
    return {**shown, "names": names, "rows": rows, "result": result}


def _places(items: Sequence[ScoredItem], number: int, score: str, sign: int) -> dict[int, int]:
    """The indices of the first items by a score (the last ones with the sign -1), with their places."""
    datasets = Counter(item.prediction["dataset"] for item in items)
    left = dict.fromkeys(datasets, max(1, number // len(datasets)) if number else 0)
    chosen = []
    for index in sorted(range(len(items)), key=lambda index: _rank(items[index], score, sign)):
        dataset = items[index].prediction["dataset"]
        if left[dataset] > 0:
            left[dataset] -= 1
            chosen.append(index)
    return {index: place for place, index in enumerate(chosen)}


def _rank(item: ScoredItem, score: str, sign: int) -> tuple[float, float, int]:
    """Sorts items by one score, then by all of them, then in an order that mixes images and questions."""
    mean = sum(item.scores.values()) / max(1, len(item.scores))
    shuffled = zlib.crc32(f"{item.prediction['image']}\n{item.prediction.get('question', '')}".encode())
    return sign * item.scores.get(score, mean), sign * mean, shuffled


def _card(item: ScoredItem, folder: Path, colors: Mapping[str, int]) -> dict[str, Any]:
    from ..utils.images import read_image

    prompts = item.prediction.get("router_prompts", {})
    thumbnail = read_image(folder / item.prediction["image"])
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return {
        "prediction": item.prediction,
        "image": {"url": data_url(thumbnail), "width": thumbnail.width, "height": thumbnail.height},
        "references": Counter(item.references),
        "experts": [
            {"name": name, "color": colors[name], "prompt": prompts.get(name), "text": text}
            for name, text in item.prediction.get("expert_texts", {}).items()
        ],
        "scores": item.scores,
    }

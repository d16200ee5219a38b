"""One HTML page that shows an evaluation with its pictures: self-contained, it opens from the file without a network.

What a model wrote and what people wrote about images is untrusted text: the template escapes all of it.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.files import write_whole
from ..utils.html import COLORS, data_url, render
from .markdown import headline, rows_of, shown_scores
from .report import Report


THUMBNAIL = 256  # pixels of the longer side
SHOWN = 50  # worst and as many best items; with pictures of about 20 kB the page stays below 5 MB
_SORTED_BY = {"captioning": "CIDEr-D", "vqa": "accuracy"}


@dataclass(frozen=True)
class Item:
    """One captioned image or answered question.

    Attributes:
        prediction: as in the predictions file: `image` (relative to the data folder), `dataset`, `split`, and `caption`
            or `question` and `answer`, with `router_prompts` and `parts` by expert where experts were asked.
        references: the published captions, or the one published answer.
        scores: of this item alone.
    """

    prediction: Mapping[str, Any]
    references: Sequence[str]
    scores: Mapping[str, float]


def write_page(
    report: Report,
    items: Sequence[Item],
    data_folder: str | Path,
    output: str | Path,
    worst: int = SHOWN,
    best: int = SHOWN,
) -> None:
    """Write the page of a report: scores and settings, then items with pictures, the worst first.

    Args:
        report: whose results are shown above the items.
        items: everything that was scored, of all datasets of the report, in any order.
        data_folder: which the items' images are relative to.
        output: the HTML file.
        worst, best: how many items of each kind to show; several datasets share these numbers evenly.

    Raises:
        RSMoEError: when there is no item, or an image cannot be read.
    """
    if not items:
        raise RSMoEError("no item to show; give the predictions that were scored")
    datasets = list(dict.fromkeys(item.prediction["dataset"] for item in items))
    text = render(
        Path(__file__).with_name("page.html"),
        report=report,
        datasets=datasets,
        tables=[_table(report, index) for index in range(len(report["results"]))],
        cards=_cards(report, items, datasets, Path(data_folder), worst, best),
        total=len(items),
        sorted_by=_SORTED_BY[report["task"]],
    )
    write_whole(output, text)


def _table(report: Report, index: int) -> dict[str, Any]:
    """A result for the template: its headline, the names of the scores and a row for each system."""
    result = report["results"][index]
    rows = rows_of([(report, result)])
    return {
        "headline": headline(result, report["task"]),
        "names": shown_scores(row.scores for row in rows),
        "rows": rows,
        "result": result,
    }


def _cards(
    report: Report, items: Sequence[Item], datasets: Sequence[str], folder: Path, worst: int, best: int
) -> list[dict[str, Any]]:
    """The items to show, the worst first; `worst` and `best` of a card are its place in these lists, or None."""
    places: dict[int, dict[str, int | None]] = {}
    for name, share, sign in (("worst", worst, 1), ("best", best, -1)):
        ordered = sorted(range(len(items)), key=lambda index: _rank(items[index], _SORTED_BY[report["task"]], sign))
        of_dataset = {dataset: max(1, share // len(datasets)) if share else 0 for dataset in datasets}
        place = 0
        for index in ordered:
            dataset = items[index].prediction["dataset"]
            if of_dataset[dataset] > 0:
                of_dataset[dataset] -= 1
                places.setdefault(index, {"worst": None, "best": None})[name] = place
                place += 1
    shown = sorted(places, key=lambda index: _rank(items[index], _SORTED_BY[report["task"]], 1))
    experts = list(dict.fromkeys(name for item in items for name in item.prediction.get("parts", {})))
    return [_card(items[index], folder, experts) | places[index] for index in shown]


def _rank(item: Item, name: str, sign: int) -> tuple[float, float, int]:
    """Sorts items by one score, then by all of them, then in an order that mixes images and questions."""
    mean = sum(item.scores.values()) / max(1, len(item.scores))
    shuffled = zlib.crc32(f"{item.prediction['image']}\n{item.prediction.get('question', '')}".encode())
    return sign * item.scores.get(name, mean), sign * mean, shuffled


def _card(item: Item, folder: Path, experts: Sequence[str]) -> dict[str, Any]:
    prediction = item.prediction
    counts = {text: list(item.references).count(text) for text in dict.fromkeys(item.references)}
    prompts, parts = prediction.get("router_prompts", {}), prediction.get("parts", {})
    return {
        "prediction": prediction,
        "picture": _thumbnail(folder / prediction["image"]),
        "references": counts,
        "steps": [
            {"name": name, "color": experts.index(name) % len(COLORS), "prompt": prompts.get(name), "part": part}
            for name, part in parts.items()
        ],
        "scores": item.scores,
    }


def _thumbnail(path: Path) -> dict[str, Any]:
    """A small JPEG of an image as a data URL, with its size."""
    from ..utils.images import read_image

    picture = read_image(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return {"url": data_url(picture), "width": picture.width, "height": picture.height}

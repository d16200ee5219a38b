"""Does a model know which of its captions are right? A risk-coverage plot, the AUROC and the calibration error.

python examples/risk_coverage.py PREDICTIONS.jsonl --data DATA [--by score] [--output docs/images/risk-coverage.svg]

PREDICTIONS are those that `rsmoe evaluate` wrote of a full model: each line has the `confidence` of its caption, and
the `score` that the reranker gave it. DATA is the data folder, with objects.jsonl. Captions are sorted by the
confidence. Risk is the share of the objects mentioned by the captions kept that are not there; coverage is the share
of captions kept. A dotted line is the risk of all captions: where the curve would be if the confidence said nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from modeling_rsmoe.bench.plots import INK, LOOK
from modeling_rsmoe.data.labels import OBJECTS_FILE, read_objects
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.calibration import auroc, calibration_error
from modeling_rsmoe.evaluation.intervals import Array, interval
from modeling_rsmoe.evaluation.objects import mentions, object_labels
from modeling_rsmoe.evaluation.predict import read_predictions
from modeling_rsmoe.utils.extras import require
from modeling_rsmoe.utils.files import whole_file
from modeling_rsmoe.utils.tables import markdown_table


SAMPLES = 1000
FEWEST = 20  # captions kept that a curve begins with: fewer make no rate
COLORS = ("#3b82c4", "#d9822b", "#3f9c56", "#8e6bbf")  # on white pages and on dark ones


def judged(predictions: Path, data: Path, by: str = "confidence") -> dict[str, Array]:
    """By dataset, for each caption of a labelled image: `by`, objects mentioned, those of them that are not there.

    Raises:
        RSMoEError: no labels, or no caption with a score has any.
    """
    labels = object_labels(read_objects(data))
    rows: dict[str, list[tuple[float, int, int]]] = {}
    for line in read_predictions(predictions).values():
        of_image = labels.get(data.absolute() / line["image"])
        if of_image is not None and by in line:
            mentioned = mentions(line["caption"], of_image.all)
            row = (line[by], len(mentioned), len(mentioned - of_image.present))
            rows.setdefault(line.get("dataset", "images"), []).append(row)
    if not rows:
        raise RSMoEError(
            f"no caption of {predictions} has a {by} and labels in {data / OBJECTS_FILE}; give predictions of "
            "`rsmoe evaluate` by the full model, with fusion rerank"
        )
    return {dataset: np.array(of_dataset, dtype=np.float64) for dataset, of_dataset in rows.items()}


def risk_coverage(rows: Array) -> tuple[Array, Array]:
    """Coverage and risk, in %, with the surest captions first.

    Args:
        rows: [captions, 3], of `judged`.
    """
    ordered = rows[np.argsort(-rows[:, 0], kind="stable")]
    mentioned, wrong = np.cumsum(ordered[:, 1]), np.cumsum(ordered[:, 2])
    coverage = 100 * np.arange(1, len(rows) + 1) / len(rows)
    return coverage, 100 * wrong / np.maximum(mentioned, 1)


def auroc_table(of_datasets: dict[str, Array], by: str = "confidence") -> str:
    """Markdown: the captions, how many are right, the AUROC with its bootstrap 95 % interval, and of a probability the
    calibration error."""
    draw, lines = np.random.default_rng(0), []
    for dataset, rows in of_datasets.items():
        drawn = [_auroc(rows[draw.integers(len(rows), size=len(rows))]) for _ in range(SAMPLES)]
        score = interval(_auroc(rows), np.nan_to_num(drawn, nan=50.0))  # drawn captions of one kind say nothing
        right = 100 * np.mean(rows[:, 2] == 0)
        error = f"{calibration_error(rows[:, 0], rows[:, 2] == 0):.1f}" if by == "confidence" else ""
        interval_text = f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"
        lines.append([dataset, f"{len(rows)}", f"{right:.1f}", interval_text, error])
    header = ["", "captions", "mention nothing that is not there, %", "AUROC", "calibration error, %"]
    return markdown_table(header, lines)


def _auroc(rows: Array) -> float:
    """How often a caption that mentions nothing that is not there comes before one that does."""
    return auroc(rows[:, 0], rows[:, 2] == 0)


def draw_curves(of_datasets: dict[str, Array], output: Path) -> None:
    """One curve a dataset, as an SVG without a background."""
    require("matplotlib", "train").use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(LOOK | {"font.size": 11}):
        figure, axis = plt.subplots(figsize=(6.4, 3.6))
        for (dataset, rows), color in zip(of_datasets.items(), cycle(COLORS)):
            coverage, risk = risk_coverage(rows)
            shown = slice(min(FEWEST, len(rows)) - 1, None)
            axis.plot(coverage[shown], risk[shown], color=color, linewidth=2, label=f"{dataset}, {len(rows)} captions")
            axis.axhline(risk[-1], color=color, linewidth=1, linestyle=":")
        axis.set(xlabel="captions kept, the surest, %", ylabel="objects that are not there, %")
        axis.set(xlim=(0, 100), ylim=(0, None))
        axis.grid(alpha=0.25, color=INK)
        axis.legend(frameon=False)
        figure.tight_layout()
        with whole_file(output) as path:
            figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--by", choices=["confidence", "score"], default="confidence")
    parser.add_argument("--output", type=Path, default=Path("risk-coverage.svg"))
    arguments = parser.parse_args(words)
    try:
        of_datasets = judged(arguments.predictions, arguments.data, arguments.by)
        draw_curves(of_datasets, arguments.output)
    except RSMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(auroc_table(of_datasets, arguments.by))
    return 0


if __name__ == "__main__":
    sys.exit(main())

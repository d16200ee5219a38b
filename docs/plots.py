"""Draw docs/images/scores.svg: captions on test images, from the reports in docs/scores.

    make plots                # or: python -m docs.plots

Rows without a report are left out. The image reads on a light page and on a dark one.
"""

import argparse
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from modeling_rsmoe.bench.plots import INK, LOOK
from modeling_rsmoe.evaluation.report import Result, ScoreEntry, read_report


DOCS = Path(__file__).resolve().parent
SCORE = "CIDEr-D"
PANELS = {"RSICD": "RSICD", "UCM-Captions": "UCM-Captions", "NWPU-Captions": "NWPU-Captions (never trained on)"}
BASELINES = {
    "retrieval": "best training caption (reranker)",
    "nearest": "captions of similar images",
    "constant": "most frequent caption",
}
# As published, on whole official test splits. The systems: RSGPT, arXiv 2307.15266; SkyEyeGPT, arXiv 2401.09712;
# EarthGPT, arXiv 2401.16822; sound active attention, Lu, Wang and Zheng, IEEE TGRS 58(3), 2020,
# doi 10.1109/TGRS.2019.2951636; post-processing, Hoxha, Scuccato and Melgani, IEEE TGRS 61, 2023, as later papers
# quote it.
PUBLISHED = {
    "RSICD": {"sound active attention": 132.35, "RSGPT 13B": 102.94, "SkyEyeGPT-single": 89.37},
    "UCM-Captions": {"RSGPT 13B": 333.23, "post-processing": 309.64, "SkyEyeGPT": 236.75},
    "NWPU-Captions": {"EarthGPT 7B": 192.6},
}
OURS, BASE, BASELINE, OTHERS = "#3b82c4", "#8fb8de", "#9aa1aa", "#d9822b"


def rows(scores: Path, dataset: str) -> list[tuple[str, ScoreEntry, str]]:
    """What stands in a panel, the first on top: name, score and color."""
    found: list[tuple[str, ScoreEntry, str]] = []
    reports = {system: result_of(scores / f"captioning-test-{system}.json", dataset) for system in ("full", "base")}
    for system, label, color in (("full", "rs-moe-nano", OURS), ("base", "its base LM alone", BASE)):
        found.append((label, reports[system]["scores"][SCORE], color))
    for name, label in BASELINES.items():
        if name in reports["full"]["baselines"]:
            found.append((label, reports["full"]["baselines"][name][SCORE], BASELINE))
    found += [
        (name, {"value": value, "low": value, "high": value}, OTHERS) for name, value in PUBLISHED[dataset].items()
    ]
    return found


def result_of(file: Path, dataset: str) -> Result:
    return next(one for one in read_report(file)["results"] if one["dataset"] == dataset)


def draw(scores: Path, file: Path) -> None:
    """One panel for each dataset: bars, those of reports with their 95 % intervals."""
    panels = {dataset: rows(scores, dataset) for dataset in PANELS}
    with plt.rc_context(LOOK | {"font.size": 11}):
        heights = [len(panel) for panel in panels.values()]
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(8, 0.42 * sum(heights) + 1.6), gridspec_kw={"height_ratios": heights}
        )
        for axis, (dataset, panel) in zip(axes, panels.items()):
            for place, (_, score, color) in enumerate(panel):
                axis.barh(place, score["value"], color=color, height=0.7)
                if color != OTHERS:
                    axis.plot([score["low"], score["high"]], [place, place], color=INK, linewidth=1.5)
                axis.text(score["high"], place, f"  {score['value']:.1f}", va="center")
            axis.set_yticks(range(len(panel)), [name for name, *_ in panel])
            axis.tick_params(axis="y", length=0)
            axis.invert_yaxis()
            axis.margins(x=0.12)
            axis.set_xlim(left=0)
            images = result_of(scores / "captioning-test-full.json", dataset)["images"]
            axis.set_title(f"{PANELS[dataset]}, {images} test images", loc="left", fontweight="bold")
        axes[-1].set_xlabel(f"{SCORE}; lines are 95 % intervals. Orange: CIDEr as published, on the whole test split")
        figure.tight_layout()
        figure.savefig(file, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, default=DOCS / "scores", help="a folder of reports")
    parser.add_argument("--output", type=Path, default=DOCS / "images" / "scores.svg", help="an .svg or .png")
    given = parser.parse_args()
    draw(given.scores, given.output)


if __name__ == "__main__":
    main()

"""Caption scores as an `evaluate` module: the same numbers as `modeling_rsmoe.evaluation.captions`."""

import datasets
import evaluate

from modeling_rsmoe.evaluation.captions import score_captions


_CITATION = """\
@article{chen2015microsoft,
  title = {Microsoft COCO Captions: Data Collection and Evaluation Server},
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and
            Dollar, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv:1504.00325},
  year = {2015}
}
"""
_DESCRIPTION = """\
BLEU-1 to 4, METEOR, ROUGE-L, CIDEr-D, CIDEr and SPICE of image captions, equal to pycocoevalcap's, and how much the
captions vary.
"""
_INPUTS = """\
predictions: one caption (str) for each image.
references: the reference captions (list of str) of each image, at least one each.
train_captions: captions that the model was trained on (list of str), for "novel".
metrics: names of the scores wanted; all by default.
samples, seed: of the bootstrap over images; 1000 and 0 by default.
Returns the scores times 100, "intervals": the bounds of the 95 % interval of each, and "missing": why a score could
not be computed.
"""


class CaptionScores(evaluate.Metric):
    """See `_INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        train_captions: list[str] | None = None,
        metrics: list[str] | None = None,
        samples: int = 1000,
        seed: int = 0,
    ) -> dict[str, object]:
        # By place: images have no names here.
        names = [f"{i:09}" for i in range(len(predictions))]
        scored = score_captions(
            dict(zip(names, references)), dict(zip(names, predictions)), train_captions, metrics, samples, seed
        )
        values: dict[str, object] = {name: score.value for name, score in scored.scores.items()}
        intervals = {name: [score.low, score.high] for name, score in scored.scores.items()}
        return values | {"intervals": intervals, "missing": scored.missing}

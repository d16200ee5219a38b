"""BLEU-1 to 4, METEOR, ROUGE-L, CIDEr-D, CIDEr and SPICE of image captions, equal to pycocoevalcap's, and how much the
captions vary: the numbers of `modeling_rsmoe.evaluation.captions`."""

import datasets
import evaluate

from modeling_rsmoe.evaluation.captions import score_captions


_CITATION = "X. Chen et al., Microsoft COCO Captions: Data Collection and Evaluation Server, arXiv:1504.00325, 2015"


class CaptionScores(evaluate.Metric):
    """Inputs of `compute`:

    predictions: one caption (str) for each image.
    references: the reference captions (list of str) of each image, at least one each.
    train_captions: captions that the model was trained on (list of str), for "novel".
    metrics: names of the scores wanted; all by default.
    samples, seed: of the bootstrap over images; 1000 and 0 by default.
    Returns the scores times 100, "intervals": the bounds of the 95 % interval of each, and "missing": why a score
    could not be computed.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self.__doc__ or "",
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

"""Accuracy of short answers about images, overall, averaged over question types and for each type, with RSVQA-LR's
counts and RSVQA-HR's areas compared in ranges as their authors do: the numbers of `modeling_rsmoe.evaluation.vqa`."""

from pathlib import Path

import datasets
import evaluate

from modeling_rsmoe.data.records import QuestionRecord
from modeling_rsmoe.evaluation.vqa import score_answers


_CITATION = "S. Lobry et al., RSVQA: Visual Question Answering for Remote Sensing Data, IEEE TGRS, 2020"


class VQAAccuracy(evaluate.Metric):
    """Inputs of `compute`:

    predictions, references: answers (str), one each for every question.
    question_types: for example "count", "presence".
    datasets: for example "RSVQA-LR"; "RSVQA-LR" and "RSVQA-HR" have answers that are compared in ranges.
    samples, seed: of the bootstrap over questions; 1000 and 0 by default.
    Returns the percentages "accuracy", "average", "accuracy: TYPE" and "exact", and "intervals": the bounds of the 95
    % interval of each.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = ("predictions", "references", "question_types", "datasets")
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self.__doc__ or "",
            features=datasets.Features({name: datasets.Value("string") for name in texts}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        question_types: list[str],
        datasets: list[str],
        samples: int = 1000,
        seed: int = 0,
    ) -> dict[str, object]:
        questions = [
            QuestionRecord(Path(), dataset, "", "", question_type, answer)
            for dataset, question_type, answer in zip(datasets, question_types, references, strict=True)
        ]
        scores = score_answers(questions, predictions, samples, seed).scores
        values: dict[str, object] = {name: score.value for name, score in scores.items()}
        return values | {"intervals": {name: [score.low, score.high] for name, score in scores.items()}}

"""Accuracy of short answers about images, overall, averaged over question types and for each type, with RSVQA-LR's
counts and RSVQA-HR's areas compared in ranges as their authors do: the numbers of `modeling_rsmoe.evaluation.vqa`."""

from pathlib import Path

import datasets
import evaluate

from modeling_rsmoe.data.records import QuestionRecord
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.vqa import SENTENCES, score_answers


_CITATION = "S. Lobry et al., RSVQA: Visual Question Answering for Remote Sensing Data, IEEE TGRS, 2020"


class VQAAccuracy(evaluate.Metric):
    """Inputs of `compute`:

    predictions, references: answers (str), one each for every question.
    question_types: for example "count", "presence".
    datasets: for example "RSVQA-LR"; "RSVQA-LR" and "RSVQA-HR" have answers that are compared in ranges.
    questions: their texts; answers of "RSIEval" and "VRSBench", which are sentences, are read by them.
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
        questions: list[str] | None = None,
        samples: int = 1000,
        seed: int = 0,
    ) -> dict[str, object]:
        if questions is None and (sentences := SENTENCES.intersection(datasets)):
            raise RSMoEError(f"answers of {', '.join(sorted(sentences))} are read by their questions; give questions=")
        texts = [""] * len(datasets) if questions is None else questions
        records = [
            QuestionRecord(Path(), dataset, "", text, question_type, answer)
            for dataset, text, question_type, answer in zip(datasets, texts, question_types, references, strict=True)
        ]
        scores = score_answers(records, predictions, samples, seed).scores
        values: dict[str, object] = {name: score.value for name, score in scores.items()}
        return values | {"intervals": {name: [score.low, score.high] for name, score in scores.items()}}

"""A data folder's records, and this package's instructions and scores, as tasks of lmms-eval want them."""

import math
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from modeling_rsmoe.data.folder import as_datasets
from modeling_rsmoe.data.records import CAPTIONS_FILE, QUESTIONS_FILE, QuestionRecord, read_captions, read_questions
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.captions import score_captions
from modeling_rsmoe.evaluation.scores import Scored
from modeling_rsmoe.evaluation.vqa import score_answers
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction
from modeling_rsmoe.utils.images import read_image


DATA = Path(os.environ.get("RSMOE_DATA", "data")).absolute()
if not DATA.is_dir():
    raise RSMoEError(f"{DATA} is no folder; set RSMOE_DATA to a data folder that `rsmoe data convert` has written")
CAPTIONS, QUESTIONS = {"test": str(DATA / CAPTIONS_FILE)}, {"test": str(DATA / QUESTIONS_FILE)}


# The lines that lmms-eval has read are of all datasets and splits: those of one are read again, checked, with images.
def _captions(lines: Dataset, dataset: str) -> Dataset:
    return as_datasets(read_captions(DATA, "test", [dataset]), "captioning")["test"]


def _questions(lines: Dataset, dataset: str) -> Dataset:
    return as_datasets(read_questions(DATA, "test", [dataset]), "vqa")["test"]


rsicd, ucm_captions = (partial(_captions, dataset=name) for name in ("RSICD", "UCM-Captions"))
rsvqa_lr, rsvqa_hr = (partial(_questions, dataset=name) for name in ("RSVQA-LR", "RSVQA-HR"))


def image(doc: dict[str, Any]) -> list[Any]:
    return [read_image(doc["image"])]


def caption_instruction(doc: dict[str, Any]) -> str:
    return DEFAULT_INSTRUCTION


def answer_instruction(doc: dict[str, Any]) -> str:
    return question_instruction(doc["question"])


# All scores are of the whole set: each is given what is predicted of a document, and what was expected.
def caption_results(doc: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    return dict.fromkeys(("BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D"), (texts[0], doc["captions"]))


def answer_results(doc: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    question = QuestionRecord(Path(), doc["dataset"], "test", doc["question"], doc["question_type"], doc["answer"])
    return dict.fromkeys(("accuracy", "average"), (texts[0], question))


def _caption_score(items: list[tuple[str, list[str]]], name: str) -> float:
    predictions, references = zip(*items)
    places = [str(place) for place in range(len(items))]
    return _value(score_captions(dict(zip(places, references)), dict(zip(places, predictions)), metrics=[name]), name)


def _answer_score(items: list[tuple[str, QuestionRecord]], name: str) -> float:
    answers, questions = zip(*items)
    return _value(score_answers(questions, answers), name)


def _value(scored: Scored, name: str) -> float:
    if name in scored.missing:
        warnings.warn(f"{name} is missing: {scored.missing[name]}", stacklevel=2)
        return math.nan
    return scored.scores[name].value


bleu_4, meteor, rouge_l, cider_d = (
    partial(_caption_score, name=name) for name in ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
)
accuracy, average = (partial(_answer_score, name=name) for name in ("accuracy", "average"))

"""Questions made of labels by a fixed rule [our decision]: the texts are templates, the answers people's labels.

- Presence, of object labels: "Are there ships?". In each split every object is asked about as often where it is as
  where it is not, so that who guesses from the question alone is right half the time. Of the images that there are
  too many of, those with the lowest hash are taken: the same on every machine.
- List, of object labels: "Which objects are in this image?", answered with all of them in alphabetical order.
- Scene, of scenes: "What is the scene of this image?".

They are questions, never captions, so no caption score sees their texts.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

from .labels import ObjectRecord, SceneRecord
from .records import QuestionRecord


# How the 17 objects of UC Merced and AID are asked about; others by their name.
OBJECT_QUESTIONS = {
    "airplane": "Are there airplanes?",
    "bare-soil": "Is there bare soil?",
    "buildings": "Are there buildings?",
    "cars": "Are there cars?",
    "chaparral": "Is there chaparral?",
    "court": "Are there sports courts?",
    "dock": "Are there docks?",
    "field": "Are there fields?",
    "grass": "Is there grass?",
    "mobile-home": "Are there mobile homes?",
    "pavement": "Is there pavement?",
    "sand": "Is there sand?",
    "sea": "Is there sea?",
    "ship": "Are there ships?",
    "tanks": "Are there tanks?",
    "trees": "Are there trees?",
    "water": "Is there water?",
}
LIST_QUESTION = "Which objects are in this image?"
SCENE_QUESTION = "What is the scene of this image?"
SCENE_ANSWERS = {"SeaLake": "sea or lake"}  # the others are their own words: HerbaceousVegetation


def object_questions(records: Sequence[ObjectRecord]) -> Iterator[QuestionRecord]:
    """Presence questions, balanced in each split for each object, then a list question for each image with objects.

    Args:
        records: of any splits and datasets.
    """
    for split in dict.fromkeys(record.split for record in records):
        of_split = [record for record in records if record.split == split]
        for name in sorted({name for record in of_split for name in (*record.present, *record.absent)}):
            question = OBJECT_QUESTIONS.get(name, f"Is there any {name.replace('-', ' ')}?")
            there = _by_hash([record for record in of_split if name in record.present], name)
            not_there = _by_hash([record for record in of_split if name in record.absent], name)
            for yes, no in zip(there, not_there):  # as many of both as the rarer one has
                yield QuestionRecord(yes.image, yes.dataset, split, question, "presence", "yes")
                yield QuestionRecord(no.image, no.dataset, split, question, "presence", "no")
        for record in of_split:
            if record.present:
                answer = ", ".join(sorted(name.replace("-", " ") for name in record.present))
                yield QuestionRecord(record.image, record.dataset, split, LIST_QUESTION, "list", answer)


def scene_questions(records: Sequence[SceneRecord]) -> Iterator[QuestionRecord]:
    """One question for each image."""
    for record in records:
        answer = scene_words(record.scene)
        yield QuestionRecord(record.image, record.dataset, record.split, SCENE_QUESTION, "scene", answer)


def scene_words(scene: str) -> str:
    """The published name of a scene in words.

    >>> scene_words("HerbaceousVegetation"), scene_words("SeaLake")
    ('herbaceous vegetation', 'sea or lake')
    """
    return SCENE_ANSWERS.get(scene, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", scene).lower())


def _by_hash(records: Sequence[ObjectRecord], name: str) -> list[ObjectRecord]:
    return sorted(records, key=lambda record: hashlib.sha256(f"{name} {record.image.name}".encode()).digest())

"""Captions of the train split, looked up for an image."""

from pathlib import Path

import numpy as np
import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.data.records import CaptionRecord
from modeling_rsmoe.evaluation.baselines import nearest_captions, retrieved_captions, share_in_train, unseen_captions


def test_nearest_captions() -> None:
    """The caption on which the captions of similar images agree, not merely that of the nearest one."""
    texts = ["many boats in a port .", "some boats in a port .", "a bridge .", "many boats in a port .", "a desert ."]
    train = [CaptionRecord(Path("/train.png"), "A", "train", (text,)) for text in texts]
    looks = np.array([[1.0, 0.0], [0.9, 0.1], [0.95, 0.05], [0.9, 0.0], [-1.0, 1.0]])
    asked = np.array([[0.96, 0.05], [-1.0, 0.9]])
    assert nearest_captions(train, looks, asked) == ["many boats in a port .", "a desert ."]
    with pytest.raises(RSMoEError, match="needs a train split"):
        nearest_captions([], looks, asked)


def test_retrieved_captions() -> None:
    """The largest product with the image, also where the other vector is longer or points elsewhere."""
    captions, vectors = ["a port .", "a desert .", "a road ."], np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.4]])
    images = np.array([[2.0, 0.1], [0.1, 2.0], [1.0, 1.0], [-1.0, -0.1]])
    assert retrieved_captions(captions, vectors, images) == ["a port .", "a desert .", "a port .", "a desert ."]
    with pytest.raises(RSMoEError, match="needs a train split"):
        retrieved_captions([], vectors, images)


def test_share_in_train() -> None:
    """Word for word, whatever the case and the marks; a reference that stands there twice counts twice."""
    train = ["A river .", "many green trees are in a park"]
    references = ["a river", "a river .", "a wide river .", "Many green trees, are in a park."]
    assert share_in_train(references, train) == 75.0
    assert share_in_train(references, []) == 0.0


def test_unseen_captions() -> None:
    """An image goes if one of its captions alone stands in train, whatever the case and the marks."""
    texts = [("a wide river .", "A river!"), ("a wide river .", "a lake ."), ("many trees",)]
    records = [CaptionRecord(Path(f"/{place}.png"), "A", "val", captions) for place, captions in enumerate(texts)]
    assert unseen_captions(records, ["a river .", "Many  trees ."]) == records[1:2]
    assert unseen_captions(records, []) == records

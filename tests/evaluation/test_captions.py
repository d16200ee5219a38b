"""Caption scores: equal to pycocoevalcap's own pipeline, right on texts that upset it, and clear without its parts."""

import builtins
import math
import shutil

import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.captions import caption_scores


REFERENCES = {
    "a": ["many green trees are near a pond .", "a pond with trees ."],
    "b": ["two planes are parked in an airport .", "there are two planes ."],
    "c": ["it is a yellow desert .", "it's a piece of desert ."],
}
PREDICTIONS = {"a": "Many green trees are near a pond.", "b": "Three planes in an airport.", "c": "It is a desert."}


@pytest.fixture
def java():
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no Java here")


@pytest.mark.usefixtures("java")
def test_scores_equal_the_coco_pipeline():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truth = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in REFERENCES.items()})
    written = PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in PREDICTIONS.items()})
    expected = [*Bleu(4).compute_score(truth, written, 0)[0]]
    expected += [Rouge().compute_score(truth, written)[0], Cider().compute_score(truth, written)[0]]

    scores = caption_scores(REFERENCES, PREDICTIONS)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "distinct"]
    assert list(scores.values())[:6] == pytest.approx([100 * score for score in expected], rel=1e-9)
    assert scores["CIDEr"] > 100
    assert scores["distinct"] == 100


@pytest.mark.usefixtures("java")
def test_a_copied_reference_scores_full_and_order_does_not_matter():
    copied = {key: REFERENCES[key][0].upper() for key in reversed(REFERENCES)}
    scores = caption_scores(REFERENCES, copied)
    assert scores["BLEU-4"] == pytest.approx(100, abs=1e-3)
    assert scores["ROUGE-L"] == pytest.approx(100)


@pytest.mark.usefixtures("java")
def test_empty_predictions_and_strange_line_ends_stay_in_place():
    strange = {"a": "many green trees\u2028are near\r\na pond", "b": "", "c": ""}
    scores = caption_scores(REFERENCES, strange)
    assert scores["ROUGE-L"] == pytest.approx(100 / 3)
    assert scores["distinct"] == pytest.approx(200 / 3)
    assert all(math.isfinite(score) for score in scores.values())


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ({}, {}, "no image to score"),
        (REFERENCES, {"a": "x"}, r'image "b" has no prediction \(2 such images\)'),
        ({"a": ["x"]}, {"a": "x", "z": "y"}, 'image "z" has no references'),
        ({"a": []}, {"a": "x"}, 'references of image "a" are'),
        ({"a": "a pond"}, {"a": "x"}, "expected a list of at least one caption"),
    ],
)
def test_what_cannot_be_scored_is_named(references, predictions, message):
    with pytest.raises(RSMoEError, match=message):
        caption_scores(references, predictions)


def test_without_pycocoevalcap(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pycocoevalcap"):
            raise ImportError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RSMoEError, match=r"evaluation extra .*\[eval\]"):
        caption_scores(REFERENCES, PREDICTIONS)


def test_without_java(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RSMoEError, match="need Java"):
        caption_scores(REFERENCES, PREDICTIONS)

"""Caption scores: equal to pycocoevalcap's own pipeline, right on texts that upset it, and clear without its parts."""

import math
import random
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import captions, meteor
from modeling_rsmoe.evaluation.captions import METRICS, score_captions


REFERENCES = {
    "a": ["many green trees are near a pond .", "a pond with trees ."],
    "b": ["two planes are parked in an airport .", "there are two planes ."],
    "c": ["it is a yellow desert .", "it's a piece of desert ."],
}
PREDICTIONS = {"a": "Many green trees are near a pond.", "b": "Three planes in an airport.", "c": "It is a desert."}
QUICK = [name for name in METRICS if name not in ("METEOR", "SPICE")]
BLEU = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
README = Path(captions.__file__).parent / "metrics" / "caption_scores" / "README.md"


@pytest.fixture(autouse=True)
def needs_pycocoevalcap():
    pytest.importorskip("pycocoevalcap")


def values(scored) -> dict[str, float]:
    return {name: score.value for name, score in scored.scores.items()}


# ---- parity


def made_captions(images: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and predictions from lists of words: repeated ones, spelling errors, numbers, empty predictions."""
    generator = random.Random(0)
    words = {
        "many": ["some", "many", "several", "two", "2", "a", "lot", "of"],
        "green": ["green", "bare", "well-kept", "yellow", "large", "small", "white-roofed"],
        "trees": [
            "trees",
            "tree",
            "buildings",
            "building",
            "houses",
            "planes",
            "aircraft",
            "ships",
            "cars",
            "playground",
            "river's",
        ],
        "are near": ["are near", "surround", "is next to", "are parked in", "aren't far from", "stand beside"],
        "a road": ["a road", "the airport", "an airport", "10 m2 of sand", "the stadium", "a river", "St. John"],
    }

    def caption() -> str:
        text = " ".join(generator.choice(choices) for choices in words.values())
        if generator.random() < 0.2:
            place = generator.randrange(len(text) - 1)
            text = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        return text + generator.choice(["", ".", " .", " , and it is (very) green .", "!"])

    references, predictions = {}, {}
    for i in range(images):
        group = [caption() for _ in range(generator.randint(1, 5))]
        references[f"{i}.jpg"] = group * 5 if generator.random() < 0.3 else group
        predictions[f"{i}.jpg"] = generator.choice([caption(), caption(), generator.choice(group).upper(), ""])
    predictions[f"{images - 1}.jpg"] = "pycocoevalcap's tokenizer loses the last ones where they are empty"
    return references, predictions


@pytest.fixture(scope="module")
def parity(tmp_path_factory):
    """500 images scored by us, by pycocoevalcap's own classes (of the whole set, of each image), and without Java."""
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no Java here")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer import ptbtokenizer

    program = Meteor()  # reads its tables for some seconds while we go on
    references, predictions = made_captions(500)
    with pytest.MonkeyPatch.context() as patch:
        # It writes beside itself, which may not be allowed.
        folder = tmp_path_factory.mktemp("tokenizer")
        jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
        shutil.copy(Path(ptbtokenizer.__file__).with_name(jar), folder / jar)
        patch.setattr(ptbtokenizer, "__file__", str(folder / "ptbtokenizer.py"))
        tokenizer = ptbtokenizer.PTBTokenizer()
        truth = tokenizer.tokenize({key: [{"caption": one} for one in texts] for key, texts in references.items()})
        written = tokenizer.tokenize({key: [{"caption": text}] for key, text in predictions.items()})
    ours = score_captions(references, predictions, samples=200)
    bleu, bleu_each = Bleu(4).compute_score(truth, written, 0)
    expected, each = dict(zip(BLEU, bleu)), dict(zip(BLEU, bleu_each))
    for name, judge in {"ROUGE-L": Rouge(), "CIDEr-D": Cider(), "METEOR": program}.items():
        expected[name], each[name] = judge.compute_score(truth, written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        without_java = score_captions(references, predictions, samples=200)
    return ours, expected, each, without_java


@pytest.mark.slow
def test_scores_equal_pycocoevalcap(parity):
    ours, expected, _, _ = parity
    assert {name: ours.scores[name].value / 100 for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0.2 < expected["METEOR"] < 0.8 and 0.1 < expected["BLEU-4"] < 0.9  # neither nothing nor everything fits
    assert ours.notes["tokenizer"] == "PTBTokenizer (Java)"


@pytest.mark.slow
def test_each_image_equals_pycocoevalcap(parity):
    ours, _, each, _ = parity
    assert len(ours.each) == 500
    for name, expected in each.items():
        assert [image[name] / 100 for image in ours.each] == pytest.approx(list(expected), abs=1e-6), name


@pytest.mark.slow
def test_without_java_all_but_meteor_stay(parity):
    ours, _, _, without_java = parity
    assert without_java.notes["tokenizer"] == "PTB tokenizer in Python"
    assert re.search("Java program; install a Java runtime", without_java.missing["METEOR"])
    assert without_java.scores == {name: score for name, score in ours.scores.items() if name != "METEOR"}
    assert [{**image, "METEOR": 0} for image in without_java.each] == [{**image, "METEOR": 0} for image in ours.each]


@pytest.mark.slow
def test_scores_stand_in_order_inside_their_intervals(parity):
    ours, _, _, _ = parity
    assert list(ours.scores) == [name for name in METRICS if name not in ours.missing]
    assert all(score.low < score.value < score.high for score in ours.scores.values())


# ---- scores beyond the parity


def test_cider_is_cider_d_without_clipping_and_penalty(monkeypatch, without_java):
    from pycocoevalcap.cider import cider_scorer

    references, predictions = made_captions(60)
    found = score_captions(references, predictions, metrics=["CIDEr", "CIDEr-D"], samples=10)
    scorer = cider_scorer.CiderScorer(n=4, sigma=math.inf)
    for image, group in references.items():
        texts = captions.ptb.tokenize([predictions[image], *group])
        scorer += (texts[0], texts[1:])
    monkeypatch.setattr(cider_scorer, "min", lambda one, other: one, raising=False)
    expected, each = scorer.compute_score()
    assert found.scores["CIDEr"].value == pytest.approx(100 * expected, abs=1e-6)
    assert [image["CIDEr"] for image in found.each] == pytest.approx(100 * each, abs=1e-6)
    assert found.scores["CIDEr"].value > found.scores["CIDEr-D"].value


def test_a_drawn_sample_is_scored_as_a_set(without_java):
    from pycocoevalcap.bleu.bleu import Bleu

    references, predictions = made_captions(40)
    found = score_captions(references, predictions, metrics=BLEU, samples=1, seed=7)
    drawn = np.array(sorted(references))[np.random.default_rng(7).integers(40, size=40)]
    truth = {i: captions.ptb.tokenize(references[image]) for i, image in enumerate(drawn)}
    written = {i: captions.ptb.tokenize([predictions[image]]) for i, image in enumerate(drawn)}
    expected = Bleu(4).compute_score(truth, written, 0)[0]
    assert [found.scores[name].low for name in BLEU] == pytest.approx([100 * score for score in expected])
    assert [found.scores[name].high for name in BLEU] == [found.scores[name].low for name in BLEU]


def test_a_copied_reference_scores_full_and_the_order_of_images_does_not_matter(without_java):
    copied = {key: REFERENCES[key][0].upper() for key in REFERENCES}
    found = score_captions(REFERENCES, copied, metrics=QUICK)
    assert values(found)["BLEU-4"] == pytest.approx(100, abs=1e-3)
    assert values(found)["ROUGE-L"] == pytest.approx(100)
    assert values(found)["CIDEr-D"] > 100
    backwards = score_captions(
        {key: REFERENCES[key] for key in reversed(REFERENCES)}, dict(reversed(copied.items())), metrics=QUICK
    )
    assert backwards.scores == found.scores
    assert backwards.each == found.each[::-1]


def test_diversity(without_java):
    predictions = {"a": "A pond.", "b": "a pond", "c": "many trees near it"}
    found = score_captions(REFERENCES, predictions, train_captions=["a pond .", "trees"], metrics=QUICK)
    assert values(found)["distinct"] == pytest.approx(200 / 3)
    assert values(found)["novel"] == pytest.approx(100 / 3)
    assert values(found)["length"] == pytest.approx(8 / 3)
    assert found.scores["distinct"].low == 50 and found.scores["distinct"].high == 100
    assert "distinct" not in found.each[0]


def test_without_training_captions_nothing_is_novel_or_not(without_java):
    found = score_captions(REFERENCES, PREDICTIONS, metrics=["novel", "distinct"])
    assert list(found.scores) == ["distinct"]
    assert found.missing == {"novel": "no training captions were given to compare with"}


def test_empty_predictions_and_strange_line_ends_stay_in_place(without_java):
    strange = {"a": "many green trees\u2028are near\r\na pond", "b": "", "c": " . "}
    found = score_captions(REFERENCES, strange, train_captions=[], metrics=QUICK)
    assert values(found)["ROUGE-L"] == pytest.approx(100 / 3)
    assert values(found)["distinct"] == pytest.approx(200 / 3)
    assert values(found)["novel"] == pytest.approx(100 / 3)
    assert found.each[0]["ROUGE-L"] == pytest.approx(100)
    assert set(found.each[1].values()) == set(found.each[2].values()) == {0.0}
    assert all(math.isfinite(score.low) and math.isfinite(score.high) for score in found.scores.values())


def test_an_empty_prediction_does_not_equal_an_empty_reference(without_java):
    found = score_captions({"a": ["."], "b": ["a pond"]}, {"a": "", "b": "a pond"}, metrics=["ROUGE-L"])
    assert [image["ROUGE-L"] for image in found.each] == pytest.approx([0, 100])


def test_one_image_has_scores_but_no_cider(without_java):
    found = score_captions({"a": ["a pond ."]}, {"a": "a pond"}, metrics=["CIDEr-D", "CIDEr", "ROUGE-L"])
    assert values(found) == {"ROUGE-L": pytest.approx(100), "CIDEr-D": 0, "CIDEr": 0}


def test_references_without_words_have_no_cider(without_java):
    found = score_captions({"a": ["."], "b": ["!", ""]}, {"a": "a pond", "b": ""}, metrics=QUICK, samples=10)
    assert found.missing["CIDEr-D"] == found.missing["CIDEr"] == "no reference has a word"
    assert values(found)["BLEU-4"] == pytest.approx(0, abs=1e-6) and values(found)["ROUGE-L"] == 0


# ---- what is missing


def test_only_the_wanted_metrics_are_computed_in_the_usual_order(without_java):
    found = score_captions(REFERENCES, PREDICTIONS, metrics={"length", "CIDEr-D", "BLEU-4"})
    assert list(found.scores) == ["BLEU-4", "CIDEr-D", "length"]
    assert list(found.each[0]) == ["BLEU-4", "CIDEr-D"]
    assert list(found.notes) == ["tokenizer", "CIDEr-D"]
    assert found.missing == {}


def test_a_meteor_that_fails_is_reported_and_the_rest_scored(monkeypatch):
    def fail(*args):
        raise RSMoEError("METEOR's Java program failed")

    monkeypatch.setattr(meteor, "statistics", fail)
    monkeypatch.setattr(captions, "_working_java", lambda: "java")
    monkeypatch.setattr(captions.ptb, "tokenize_with_java", lambda texts, java: captions.ptb.tokenize(texts))
    found = score_captions(REFERENCES, PREDICTIONS, metrics=["METEOR", "ROUGE-L"])
    assert found.missing == {"METEOR": "METEOR's Java program failed"}
    assert list(found.scores) == ["ROUGE-L"]


def test_a_java_that_does_not_run_counts_as_none(tmp_path, monkeypatch):
    """As on macOS, whose program only says where to get Java."""
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("java") == str(program)
    assert score_captions(REFERENCES, PREDICTIONS, metrics=["length"]).notes["tokenizer"] == "PTB tokenizer in Python"


def test_spice_is_never_downloaded(monkeypatch):
    from pycocoevalcap.spice import get_stanford_models, spice

    if (Path(spice.__file__).parent / "lib" / f"{get_stanford_models.JAR}.jar").exists():
        pytest.skip("SPICE is complete here")
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("no network, please"))
    found = score_captions(REFERENCES, PREDICTIONS, metrics=["SPICE"])
    assert found.scores == {}
    assert re.search("lacks lib/stanford-corenlp-3.6.0.jar and .*-models.jar", found.missing["SPICE"])


def test_spice_is_used_where_it_is_complete(tmp_path, monkeypatch):
    from pycocoevalcap.spice import spice

    class Spice:
        def compute_score(self, truth, written):
            assert truth == {0: ["many green trees are near a pond", "a pond with trees"], 1: ["x"]}
            assert written == {0: ["a pond"], 1: [""]}
            return 0.5, [{"All": {"f": 0.5}}, {"All": {"f": math.nan}}]

    names = [spice.SPICE_JAR, "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"]
    (tmp_path / "lib").mkdir()
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(spice, "Spice", Spice)
    monkeypatch.setattr(captions, "_working_java", lambda: "java")
    monkeypatch.setattr(captions.ptb, "tokenize_with_java", lambda texts, java: captions.ptb.tokenize(texts))
    found = score_captions({"a": REFERENCES["a"], "b": ["x"]}, {"a": "a pond", "b": ""}, metrics=["SPICE"])
    assert values(found) == {"SPICE": 25}
    assert found.each == [{"SPICE": 50}, {"SPICE": 0}]


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ({}, {}, "no image to score"),
        (REFERENCES, {"a": "x"}, r'image "b" has no prediction \(2 such images\)'),
        ({"a": ["x"]}, {"a": "x", "z": "y"}, 'image "z" has no references'),
        ({"a": []}, {"a": "x"}, 'references of image "a" are'),
        ({"a": "a pond"}, {"a": "x"}, "expected a list of at least one caption"),
        ({"a": ["x", None]}, {"a": "x"}, "expected a list of at least one caption"),
        ({"a": ["x"]}, {"a": ["x"]}, r"prediction of image \"a\" is \['x'\], expected one caption"),
    ],
)
def test_what_cannot_be_scored_is_named(references, predictions, message):
    with pytest.raises(RSMoEError, match=message):
        score_captions(references, predictions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["BLEU-4", "CIDER"]}, r"unknown metrics \['CIDER'\]; give a list of some of BLEU-1, .* length"),
        ({"metrics": "METEOR"}, r"unknown metrics \['METEOR'\]; give a list"),
        ({"train_captions": "a pond"}, "training captions are 'a pond', expected a list"),
        ({"metrics": ["length"], "samples": 0}, "0 bootstrap samples"),
    ],
)
def test_wrong_options_are_named(options, message, without_java):
    with pytest.raises(RSMoEError, match=message):
        score_captions(REFERENCES, PREDICTIONS, **options)


def test_without_pycocoevalcap(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(RSMoEError, match=r"needs pycocoevalcap, .* pip install .*\[eval\]"):
        score_captions(REFERENCES, PREDICTIONS)


# ---- the module of `evaluate`


def test_the_example_of_the_metric_runs_offline(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("no network, please"))
    monkeypatch.setattr(shutil, "which", lambda name: None)  # METEOR would take seconds
    real = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda path: real(path, cache_dir=str(tmp_path)))
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(code.replace("\nmetric.compute(", "\nfound = metric.compute("), names)
    found = names["found"]
    assert list(found) == [name for name in METRICS if name not in ("METEOR", "SPICE")] + ["intervals", "missing"]
    assert found["BLEU-1"] == pytest.approx(77.8, abs=0.05) and found["novel"] == 50 and found["length"] == 4.5
    assert found["intervals"]["BLEU-1"] == pytest.approx([36.8, 77.8], abs=0.05)
    assert set(found["missing"]) == {"METEOR", "SPICE"}
    again = names["metric"].compute(predictions=["a", ""], references=[["a"], ["b", "c"]], metrics=["distinct"])
    assert again == {"distinct": 100, "intervals": {"distinct": [100, 100]}, "missing": {}}

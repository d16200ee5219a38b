"""Caption scores as the field reports them, with intervals: BLEU, METEOR, ROUGE-L, CIDEr-D, CIDEr, SPICE, diversity.

The reference code is pycocoevalcap: scores of a whole set equal what its classes compute from texts tokenized by its
PTB tokenizer (a Java program). Without Java, our own tokenizer stands in and METEOR is missing.

metrics/caption_scores/README.md says what each score is. SPICE is computed only where all files of its program are
there (nothing is downloaded).

Intervals: images are drawn with replacement; n-gram weights of the CIDErs, and how often a caption occurs among the
predictions (for ``distinct``), stay those of the whole set: a drawn sample repeats images, so its count of different
captions would be too low by construction.

Every score is a formula of numbers summed over images. Of the sums of all images it is the score of the set, of one
image's numbers the score of that image, and of the sums of drawn images it gives the interval.
"""

import math
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from . import meteor, ptb
from .intervals import Array, interval, means
from .scores import Scored, Scores


@dataclass(frozen=True)
class _Texts:
    """Tokenized texts, image by image."""

    predictions: list[str]
    references: list[list[str]]
    train: set[str] | None
    java: str | None


_NOTES = {
    "CIDEr-D": "pycocoevalcap's Cider: what papers print as CIDEr",
    "CIDEr": "as first defined, without clipping and length penalty",
}
_INSTALL_JAVA = "install a Java runtime (Debian: default-jre-headless)"

# Numbers of each image [images, k], and the formula that makes scores [..., names] (not yet times 100) of their sums.
_Family = tuple[Array, Callable[[Array], Array]]


def score_captions(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    train_captions: Collection[str] | None = None,
    metrics: Collection[str] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Scored:
    """Score one caption for each image against the image's reference captions.

    Args:
        references: raw reference captions by image, at least one each. Pass them as published: both CIDErs weigh
            n-grams by these very references, so their scores of different sets of images cannot be compared.
        predictions: one raw caption by image, of the same images. An empty one scores 0.
        train_captions: that the model was trained on, raw, for ``novel``.
        metrics: names out of ``METRICS``; all of them by default. METEOR takes most of the time.
        samples: bootstrap samples of images.
        seed: of the bootstrap.

    Returns:
        Scores times 100 in the order of ``METRICS``, whatever the order of the images; ``each`` has the scores from
        BLEU-1 to SPICE for each image, in the order of ``references``.

    Raises:
        RSMoEError: when the images differ or there is none, an image has no reference, a metric is unknown, or
            pycocoevalcap is missing.
    """
    _check(references, predictions)
    names_to_score = METRICS if metrics is None else _known(metrics)
    images = sorted(references)
    texts = _tokenized(images, references, predictions, train_captions)

    scores: Scores = {}
    missing: dict[str, str] = {}
    of_images: dict[str, Array] = {}
    for names, family in _FAMILIES.items():
        if not set(names).intersection(names_to_score):
            continue
        try:
            numbers, formula = family(texts)
        except RSMoEError as error:
            missing |= dict.fromkeys(names, str(error))
            continue
        scale = 1 if names == ("length",) else 100
        values = scale * formula(numbers.sum(0))
        resampled = scale * formula(len(images) * means(numbers, samples, seed))
        scores |= {name: interval(float(values[i]), resampled[:, i]) for i, name in enumerate(names)}
        if names[0] not in DIVERSITY:
            of_images |= dict(zip(names, np.moveaxis(scale * formula(numbers), -1, 0)))
    place = dict(zip(images, range(len(images))))
    per_image = [name for name in names_to_score if name in of_images]
    return Scored(
        scores={name: scores[name] for name in names_to_score if name in scores},
        each=[{name: float(of_images[name][place[image]]) for name in per_image} for image in references],
        missing={name: missing[name] for name in names_to_score if name in missing},
        notes={
            "tokenizer": "PTBTokenizer (Java)" if texts.java else "PTB tokenizer in Python",
            **{name: note for name, note in _NOTES.items() if name in names_to_score and name in scores},
        },
    )


def _tokenized(
    images: Sequence[str],
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    train_captions: Collection[str] | None,
) -> _Texts:
    require("pycocoevalcap", "eval")
    if isinstance(train_captions, str):
        raise RSMoEError(f"training captions are {train_captions!r}, expected a list of captions")
    java = _working_java()
    train = list(train_captions or [])
    unique = list(dict.fromkeys([*train, *predictions.values(), *chain.from_iterable(references.values())]))
    tokens = dict(zip(unique, ptb.tokenize(unique) if java is None else ptb.tokenize_with_java(unique, java)))
    return _Texts(
        predictions=[tokens[predictions[image]] for image in images],
        references=[[tokens[text] for text in references[image]] for image in images],
        train=None if train_captions is None else {tokens[text] for text in train},
        java=java,
    )


def _check(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> None:
    if not references:
        raise RSMoEError("no image to score; give references and predictions of at least one image")
    for images, others, what in ((references, predictions, "prediction"), (predictions, references, "references")):
        missing = [image for image in images if image not in others]
        if missing:
            raise RSMoEError(f'image "{missing[0]}" has no {what} ({len(missing)} such images); score the same images')
    for image, texts in references.items():
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise RSMoEError(f'references of image "{image}" are {texts!r}, expected a list of at least one caption')
        if not isinstance(predictions[image], str):
            raise RSMoEError(f'prediction of image "{image}" is {predictions[image]!r}, expected one caption')


def _known(metrics: Collection[str]) -> list[str]:
    unknown = {metrics} if isinstance(metrics, str) else set(metrics).difference(METRICS)
    if unknown:
        raise RSMoEError(f"unknown metrics {sorted(unknown)}; give a list of some of {', '.join(METRICS)}")
    return [name for name in METRICS if name in metrics]


def _working_java() -> str | None:
    """Path of a Java program that runs: some systems have one that only says where to get Java."""
    java = shutil.which("java")
    works = java and not subprocess.run([java, "-version"], capture_output=True, check=False).returncode
    return java if works else None


def _bleu(texts: _Texts) -> _Family:
    scorer = require("pycocoevalcap.bleu.bleu_scorer", "eval").BleuScorer(n=4)
    for text, group in zip(texts.predictions, texts.references):
        scorer += (text, group)
    numbers = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min((abs(reference - length), reference) for reference in counts["reflen"])[1]
        numbers.append([*counts["correct"], *counts["guess"], length, closest])
    return np.array(numbers, dtype=np.float64), _bleu_formula


def _bleu_formula(sums: Array) -> Array:
    """BLEU-1 to 4 of counts ``[..., 10]``, as pycocoevalcap's ``BleuScorer.compute_score`` has it."""
    correct, possible = sums[..., 0:4] + 1e-15, sums[..., 4:8] + 1e-9  # its constants, against division by zero
    precision = np.cumprod(correct / possible, axis=-1) ** (1 / np.arange(1, 5))
    ratio = (sums[..., 8:9] + 1e-15) / (sums[..., 9:10] + 1e-9)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))


def _meteor(texts: _Texts) -> _Family:
    if texts.java is None:
        raise RSMoEError(f"METEOR is a Java program; {_INSTALL_JAVA}")
    counts = meteor.statistics(texts.predictions, texts.references, texts.java)
    return counts, lambda sums: meteor.score(sums)[..., None]


def _rouge(texts: _Texts) -> _Family:
    rouge = require("pycocoevalcap.rouge.rouge", "eval").Rouge()
    # An empty caption would equal an empty reference there.
    return _mean(
        [rouge.calc_score([text], group) if text else 0 for text, group in zip(texts.predictions, texts.references)]
    )


def _ciders(texts: _Texts) -> _Family:
    if not any(text for group in texts.references for text in group):
        raise RSMoEError("no reference has a word")
    scorer = require("pycocoevalcap.cider.cider_scorer", "eval").CiderScorer(n=4)
    for text, group in zip(texts.predictions, texts.references):
        scorer += (text, group)
    _, with_penalty = scorer.compute_score()

    def unit(counts: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], float]:
        """N-gram weights (tf-idf) of a text, those of each n scaled to length 1."""
        frequency = scorer.document_frequency
        weights = {gram: n * (scorer.ref_len - math.log(max(1, frequency[gram]))) for gram, n in counts.items()}
        squares: defaultdict[int, float] = defaultdict(float)
        for gram, weight in weights.items():
            squares[len(gram)] += weight**2
        return {gram: weight / math.sqrt(squares[len(gram)]) for gram, weight in weights.items() if weight}

    plain = []
    for prediction_counts, reference_counts in zip(scorer.ctest, scorer.crefs):
        prediction = unit(prediction_counts)
        cosines = []
        for reference in map(unit, reference_counts):
            cosines.append(sum(weight * reference.get(gram, 0) for gram, weight in prediction.items()))
        plain.append(10 * sum(cosines) / len(cosines) / 4)  # mean over references and over n = 1 to 4
    return _mean(with_penalty, plain)


def _spice(texts: _Texts) -> _Family:
    spice = require("pycocoevalcap.spice.spice", "eval")
    get_stanford_models = require("pycocoevalcap.spice.get_stanford_models", "eval")
    folder = Path(spice.__file__).parent
    jars = [spice.SPICE_JAR, *(f"lib/{get_stanford_models.JAR}{end}.jar" for end in ("", "-models"))]
    missing = [name for name in jars if not (folder / name).is_file()]
    if missing:
        # Left alone, pycocoevalcap would start a download of hundreds of megabytes here.
        raise RSMoEError(
            f"pycocoevalcap's folder spice lacks {' and '.join(missing)}; its get_stanford_models.py gets them"
        )
    if texts.java is None:
        raise RSMoEError(f"SPICE is a Java program; {_INSTALL_JAVA}")
    references = dict(enumerate(texts.references))
    predictions = {image: [text] for image, text in enumerate(texts.predictions)}
    try:
        _, scores = spice.Spice().compute_score(references, predictions)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RSMoEError(f"SPICE's Java program failed: {error}") from error
    return _mean(np.nan_to_num([score["All"]["f"] for score in scores]))


def _distinct(texts: _Texts) -> _Family:
    times = Counter(texts.predictions)
    return _mean([1 / times[text] for text in texts.predictions])  # a caption written n times counts once in all


def _novel(texts: _Texts) -> _Family:
    if texts.train is None:
        raise RSMoEError("no training captions were given to compare with")
    return _mean([bool(text) and text not in texts.train for text in texts.predictions])


def _length(texts: _Texts) -> _Family:
    return _mean([len(text.split()) for text in texts.predictions])


def _mean(*values: Any) -> _Family:
    numbers = np.array([*values, np.ones(len(values[0]))], dtype=np.float64).T  # [images, scores + 1]
    return numbers, lambda sums: sums[..., :-1] / sums[..., -1:]


_FAMILIES: dict[tuple[str, ...], Callable[[_Texts], _Family]] = {
    ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"): _bleu,
    ("METEOR",): _meteor,
    ("ROUGE-L",): _rouge,
    ("CIDEr-D", "CIDEr"): _ciders,
    ("SPICE",): _spice,
    ("distinct",): _distinct,
    ("novel",): _novel,
    ("length",): _length,
}
METRICS = tuple(name for names in _FAMILIES for name in names)
DIVERSITY = ("distinct", "novel", "length")  # of a set of captions, not of one

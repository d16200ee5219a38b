"""Caption scores as the field reports them, with intervals: BLEU, METEOR, ROUGE-L, CIDEr-D, CIDEr, SPICE, diversity.

The reference code is pycocoevalcap: scores of a whole set equal what its classes compute from texts tokenized by its
PTB tokenizer (a Java program). Without Java, our own tokenizer stands in and METEOR is missing. Knows nothing about
models or data folders.

Every score is a formula of numbers summed over images. Of the sums of all images it is the score of the set, of one
image's numbers the score of that image, and of the sums of drawn images it gives the interval.
"""

import math
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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

    written: list[str]
    truth: list[list[str]]
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
        train_captions: raw captions that the model was trained on, for ``novel``.
        metrics: names of the scores wanted, out of ``METRICS``; all of them by default. METEOR takes most of the time.
        samples: bootstrap samples of images.
        seed: of the bootstrap.

    Returns:
        Scores times 100 in the order of ``METRICS``, whatever the order of the images given:

        * ``BLEU-1`` .. ``BLEU-4``: over the whole set, with the reference length closest to the caption's.
        * ``METEOR``: version 1.5, over the whole set (not the mean of the images' scores).
        * ``ROUGE-L``: mean over images.
        * ``CIDEr-D``: mean over images. This is what pycocoevalcap's ``Cider`` computes, and what papers on captioning
          print under the name "CIDEr": with clipped counts and a penalty for lengths that differ. Up to 1000; 0 for
          a single image, whose n-grams occur in "every" image.
        * ``CIDEr``: as first defined (Vedantam, Zitnick and Parikh 2015, equations 2 and 3), without clipping and
          without the penalty, times 10 as in CIDEr-D. Hardly any paper prints it.
        * ``SPICE``: mean over images; only where its program has all its parts (nothing is downloaded).
        * ``distinct``: the percentage of different captions among the predictions, which shows a model that hardly
          looks at the image. ``novel``: the percentage of predictions that are not among ``train_captions``; an empty
          one is not novel. Both compare tokenized captions. ``length``: the mean number of words, not times 100.

        ``each`` has the scores from BLEU-1 to SPICE for each image, in the order of ``references``. Intervals: images
        are drawn with replacement; n-gram weights of the CIDErs, and how often a caption occurs among the predictions
        (for ``distinct``), stay those of the whole set: a drawn sample repeats images, so its own count of different
        captions would be too low by construction.

    Raises:
        RSMoEError: when the images differ or there is none, an image has no reference, a metric is unknown, or
            pycocoevalcap is missing.
    """
    _check(references, predictions)
    wanted = METRICS if metrics is None else _known(metrics)
    check_installed()

    images = sorted(references)
    java = _working_java()
    if isinstance(train_captions, str):
        raise RSMoEError(f"training captions are {train_captions!r}, expected a list of captions")
    train = list(train_captions or [])
    every = dict.fromkeys([*train, *predictions.values(), *(text for group in references.values() for text in group)])
    tokens = dict(zip(every, ptb.tokenize(list(every)) if java is None else ptb.tokenize_with_java(list(every), java)))
    texts = _Texts(
        written=[tokens[predictions[image]] for image in images],
        truth=[[tokens[text] for text in references[image]] for image in images],
        train=None if train_captions is None else {tokens[text] for text in train},
        java=java,
    )

    scores: Scores = {}
    missing: dict[str, str] = {}
    alone: dict[str, Array] = {}
    for names, family in _FAMILIES.items():
        if not set(names).intersection(wanted):
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
            alone |= dict(zip(names, np.moveaxis(scale * formula(numbers), -1, 0)))
    place = {image: index for index, image in enumerate(images)}
    return Scored(
        scores={name: scores[name] for name in wanted if name in scores},
        each=[{name: float(alone[name][place[image]]) for name in wanted if name in alone} for image in references],
        missing={name: missing[name] for name in wanted if name in missing},
        notes={
            "tokenizer": "PTBTokenizer (Java)" if java else "PTB tokenizer in Python",
            **{name: note for name, note in _NOTES.items() if name in wanted and name in scores},
        },
    )


def check_installed() -> None:
    """Raises: RSMoEError when pycocoevalcap is missing, with the command that installs it."""
    require("pycocoevalcap", "eval")


def _check(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> None:
    if not references:
        raise RSMoEError("no image to score; give references and predictions of at least one image")
    for one, other, what in ((references, predictions, "prediction"), (predictions, references, "references")):
        missing = [image for image in one if image not in other]
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
    for text, group in zip(texts.written, texts.truth):
        scorer += (text, group)
    rows = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min((abs(reference - length), reference) for reference in counts["reflen"])[1]
        rows.append([*counts["correct"], *counts["guess"], length, closest])
    return np.array(rows, dtype=np.float64), _bleu_formula


def _bleu_formula(sums: Array) -> Array:
    """BLEU-1 to 4 of counts ``[..., 10]``, as pycocoevalcap's ``BleuScorer.compute_score`` has it."""
    correct, possible = sums[..., 0:4] + 1e-15, sums[..., 4:8] + 1e-9  # its constants, against division by zero
    precision = np.cumprod(correct / possible, axis=-1) ** (1 / np.arange(1, 5))
    ratio = (sums[..., 8:9] + 1e-15) / (sums[..., 9:10] + 1e-9)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))


def _meteor(texts: _Texts) -> _Family:
    if texts.java is None:
        raise RSMoEError(f"METEOR is a Java program; {_INSTALL_JAVA}")
    counts = meteor.statistics(texts.written, texts.truth, texts.java)
    return counts, lambda sums: meteor.score(sums)[..., None]


def _rouge(texts: _Texts) -> _Family:
    rouge = require("pycocoevalcap.rouge.rouge", "eval").Rouge()
    # An empty caption would equal an empty reference there.
    return _mean([rouge.calc_score([text], group) if text else 0 for text, group in zip(texts.written, texts.truth)])


def _ciders(texts: _Texts) -> _Family:
    if not any(text for group in texts.truth for text in group):
        raise RSMoEError("no reference has a word")
    scorer = require("pycocoevalcap.cider.cider_scorer", "eval").CiderScorer(n=4)
    for text, group in zip(texts.written, texts.truth):
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
    for written, group in zip(scorer.ctest, scorer.crefs):
        mine, theirs = unit(written), [unit(reference) for reference in group]
        cosines = [sum(weight * other.get(gram, 0) for gram, weight in mine.items()) for other in theirs]
        plain.append(10 * sum(cosines) / len(cosines) / 4)  # mean over references and over n = 1 to 4
    return _mean(with_penalty, plain)


def _spice(texts: _Texts) -> _Family:
    spice = require("pycocoevalcap.spice.spice", "eval")
    get_stanford_models = require("pycocoevalcap.spice.get_stanford_models", "eval")
    folder = Path(spice.__file__).parent
    needed = [spice.SPICE_JAR, *(f"lib/{get_stanford_models.JAR}{end}.jar" for end in ("", "-models"))]
    absent = [name for name in needed if not (folder / name).is_file()]
    if absent:
        # Left alone, pycocoevalcap would start a download of hundreds of megabytes here.
        raise RSMoEError(
            f"pycocoevalcap's folder spice lacks {' and '.join(absent)}; its get_stanford_models.py gets them"
        )
    if texts.java is None:
        raise RSMoEError(f"SPICE is a Java program; {_INSTALL_JAVA}")
    truth = dict(enumerate(texts.truth))
    try:
        _, found = spice.Spice().compute_score(truth, {image: [text] for image, text in enumerate(texts.written)})
    except (OSError, subprocess.CalledProcessError) as error:
        raise RSMoEError(f"SPICE's Java program failed: {error}") from error
    return _mean(np.nan_to_num([one["All"]["f"] for one in found]))


def _distinct(texts: _Texts) -> _Family:
    times = Counter(texts.written)
    return _mean([1 / times[text] for text in texts.written])  # a caption written n times counts once in all


def _novel(texts: _Texts) -> _Family:
    if texts.train is None:
        raise RSMoEError("no training captions were given to compare with")
    return _mean([bool(text) and text not in texts.train for text in texts.written])


def _length(texts: _Texts) -> _Family:
    return _mean([len(text.split()) for text in texts.written])


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

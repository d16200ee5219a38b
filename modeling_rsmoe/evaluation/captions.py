"""Caption scores as the field reports them: BLEU-1 to 4, ROUGE-L and CIDEr by pycocoevalcap, times 100.

Texts go through the PTB tokenizer that pycocoevalcap carries (a Java program), exactly as in the COCO caption
evaluation: lower case, no punctuation. Knows nothing about models or data folders.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from ..errors_rsmoe import RSMoEError


Texts = dict[str, list[str]]


def caption_scores(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """Score one caption for each image against the image's reference captions.

    Args:
        references: raw reference captions by image, at least one each. Pass them as published: CIDEr weighs n-grams by
            these very references, so scores of different sets of images cannot be compared.
        predictions: one caption by image, of the same images. An empty one scores 0.

    Returns:
        ``BLEU-1`` .. ``BLEU-4`` (over the whole set), ``ROUGE-L`` and ``CIDEr`` (means over images), all times 100;
        CIDEr may exceed 100 and is 0 for a single image, whose n-grams occur in "every" image. ``distinct``: the
        percentage of different captions among the predictions, which shows a model that hardly looks at the image.

    Raises:
        RSMoEError: when the images differ or there is none, an image has no reference, or pycocoevalcap or Java is
            missing.
    """
    _check(references, predictions)
    bleu, cider, rouge, tokenizer = _pycocoevalcap()
    truth = _tokenize({image: list(texts) for image, texts in references.items()}, tokenizer)
    written = _tokenize({image: [predictions[image]] for image in references}, tokenizer)
    scores = {f"BLEU-{n}": float(score) for n, score in enumerate(bleu.Bleu(4).compute_score(truth, written, 0)[0], 1)}
    scores["ROUGE-L"] = float(rouge.Rouge().compute_score(truth, written)[0])
    scores["CIDEr"] = float(cider.Cider().compute_score(truth, written)[0])
    scores["distinct"] = len({texts[0] for texts in written.values()}) / len(written)
    return {name: 100 * score for name, score in scores.items()}


def _check(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> None:
    if not references:
        raise RSMoEError("no image to score; give references and predictions of at least one image")
    for one, other, what in ((references, predictions, "prediction"), (predictions, references, "references")):
        missing = [image for image in one if image not in other]
        if missing:
            raise RSMoEError(f'image "{missing[0]}" has no {what} ({len(missing)} such images); score the same images')
    for image, texts in references.items():
        if isinstance(texts, str) or not texts:
            raise RSMoEError(f'references of image "{image}" are {texts!r}, expected a list of at least one caption')


def _pycocoevalcap() -> tuple[ModuleType, ModuleType, ModuleType, ModuleType]:
    try:
        from pycocoevalcap.bleu import bleu
        from pycocoevalcap.cider import cider
        from pycocoevalcap.rouge import rouge
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise RSMoEError(
            f'caption scores need the evaluation extra ({error}); run: pip install "modeling-rsmoe[eval]"'
        ) from error
    return bleu, cider, rouge, ptbtokenizer


def _tokenize(texts: Texts, tokenizer: ModuleType) -> Texts:
    """Tokens joined by spaces. pycocoevalcap's own wrapper does the same, but writes into its installation folder, and
    loses the last predictions where they are empty."""
    java = shutil.which("java")
    if java is None:
        raise RSMoEError(
            "caption scores need Java for the PTB tokenizer; install a Java runtime (default-jre-headless)"
        )
    # One line a text; a full stop stands for an empty text and goes with the punctuation.
    lines = [" ".join(text.split()) or "." for group in texts.values() for text in group]
    jar = Path(str(tokenizer.__file__)).with_name(tokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [java, "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input="\n".join(lines).encode(), capture_output=True, check=False
    )
    tokenized = done.stdout.decode().removesuffix("\n").split("\n")
    if done.returncode or len(tokenized) != len(lines):
        message = done.stderr.decode(errors="replace").strip()[-300:]
        raise RSMoEError(
            f"the PTB tokenizer gave {len(tokenized)} lines for {len(lines)} texts (exit {done.returncode}): {message}"
        )
    kept = (" ".join(word for word in line.split() if word not in tokenizer.PUNCTUATIONS) for line in tokenized)
    return {image: [next(kept) for _ in group] for image, group in texts.items()}

"""How often the aspect rule agrees with a person: 150 sentences of six datasets, labelled by hand before the rule saw
them (docs/explanation/aspects.md).

python examples/aspect_agreement.py DIR [DIR ...]

DIR is a data folder, as `rsmoe data convert` writes it. The sentences are not ours to publish, so `aspect_labels.csv`
has their sha256; they are found again among the sentences of DIR. What is not there is counted and left out.
"""

import argparse
import csv
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_rsmoe.data.aspects import ASPECTS, aspect_of
from modeling_rsmoe.data.records import CaptionRecord, read_captions
from modeling_rsmoe.data.sentences import split_sentences
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.utils.tables import markdown_table


HALVES = ("tuning", "held out", "")  # "" is both
LABELS = Path(__file__).with_name("aspect_labels.csv")


@dataclass(frozen=True)
class Label:
    """One drawn sentence. The rule was improved by looking at its errors among "tuning" only."""

    dataset: str
    half: str  # "tuning" or "held out"
    sentence: str  # see `digest`
    aspect: str


def digest(sentence: str) -> str:
    """Of a sentence's words, whatever their case and the punctuation."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", sentence.lower())).encode()).hexdigest()[:16]


def read_labels(file: Path = LABELS) -> list[Label]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [Label(**row) for row in csv.DictReader(lines)]


def find_sentences(labels: Iterable[Label], records: Iterable[CaptionRecord]) -> dict[str, str]:
    """The labelled sentences that the records have, by their digest."""
    wanted = {label.sentence for label in labels}
    captions = dict.fromkeys(caption for record in records for caption in record.captions)
    found = {digest(sentence): sentence for caption in captions for sentence in split_sentences(caption)}
    return {key: sentence for key, sentence in found.items() if key in wanted}


def agreement_tables(labels: Sequence[Label], sentences: dict[str, str]) -> str:
    """Agreement by dataset, and what the rule says to the sentences of each label."""
    known = [(label, aspect_of(sentences[label.sentence])) for label in labels if label.sentence in sentences]
    if not known:
        raise RSMoEError(
            "none of the labelled sentences is in these folders; give RSICD, RSICap or another of the six"
        )

    def share(belongs: Callable[[Label], bool]) -> str:
        right = [label.aspect == said for label, said in known if belongs(label)]
        return f"{sum(right)} of {len(right)} ({100 * sum(right) / len(right):.0f} %)" if right else ""

    names = list(dict.fromkeys(label.dataset for label in labels))
    rows = [
        [name, *(share(lambda one, d=name, h=half: one.dataset == d and h in (one.half, "")) for half in HALVES)]
        for name in names
    ]
    rows.append(["all", *(share(lambda one, h=half: h in (one.half, "")) for half in HALVES)])
    confusion = [
        [aspect, *(str(sum(pair[0].aspect == aspect and pair[1] == said for pair in known)) for said in ASPECTS)]
        for aspect in ASPECTS
    ]
    return "\n\n".join(
        [
            markdown_table(["dataset", "tuning", "held out", "all"], rows),
            markdown_table(["labelled", *(f"rule: {said}" for said in ASPECTS)], confusion),
            f"{len(known)} of {len(labels)} labelled sentences found.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="DIR", nargs="+", help="a data folder with captions.jsonl")
    options = parser.parse_args(arguments)
    try:
        labels = read_labels()
        wanted = {label.dataset for label in labels}
        records = [one for folder in options.folders for one in read_captions(folder) if one.dataset in wanted]
        print(agreement_tables(labels, find_sentences(labels, records)))
    except RSMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How the sentences of captions split into aspects: the table of docs/explanation/aspects.md for a data folder.

python examples/measure_aspects.py DIR [--split train]
"""

import argparse
import sys
from collections.abc import Sequence

from modeling_rsmoe.data.aspects import ASPECTS, distinct, router_prompt, split_aspects
from modeling_rsmoe.data.records import CaptionRecord, read_captions
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.utils.tables import markdown_table


def aspect_table(records: Sequence[CaptionRecord]) -> str:
    """The split of each dataset as a Markdown table (the one of docs/explanation/aspects.md).

    Triples are theme / object / relation. Shares are percentages; the last column is the number of distinct triples of
    router prompts divided by the number of images.
    """
    header = ["dataset", "images", "sentences", "% of sentences", "% of images that have it", "% with all three"]
    header += ["distinct router prompts", "distinct triples, % of images"]
    rows = []
    for dataset in sorted({record.dataset for record in records}):
        of_dataset = [record for record in records if record.dataset == dataset]
        several = [record for record in of_dataset if len(distinct(record.captions)) >= len(ASPECTS)]
        rows.append([dataset, *_table_row(of_dataset)])
        if several and len(several) < len(of_dataset):
            rows.append([f"{dataset}, 3 or more distinct captions", *_table_row(several)])
    return markdown_table(header, rows)


def _table_row(records: Sequence[CaptionRecord]) -> list[str]:
    splits = [split_aspects(record.captions) for record in records]
    sentences = [sum(len(split[name]) for split in splits) for name in ASPECTS]
    images = [sum(bool(split[name]) for split in splits) for name in ASPECTS]
    complete = sum(all(split.values()) for split in splits)
    prompts = [[router_prompt(name, split[name]) if split[name] else "" for name in ASPECTS] for split in splits]
    different = [len(set(column) - {""}) for column in zip(*prompts)]
    return [
        str(len(records)),
        str(sum(sentences)),
        " / ".join(f"{100 * number / sum(sentences):.0f}" for number in sentences),
        " / ".join(f"{100 * number / len(records):.0f}" for number in images),
        f"{100 * complete / len(records):.0f}",
        " / ".join(str(number) for number in different),
        f"{100 * len({tuple(triple) for triple in prompts}) / len(records):.0f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="a data folder with captions.jsonl")
    parser.add_argument("--split", help="only this split, for example train; all by default")
    options = parser.parse_args(arguments)
    try:
        print(aspect_table(read_captions(options.folder, options.split)))
    except RSMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""By how much one system is better than another on the same items, with paired intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import paired_difference
from .predict import Key
from .report import ALL_DATASETS, Difference, score_entries
from .run import Evaluated, Selection, evaluate


# Scores that are means over items. BLEU and METEOR are not: they are made from sums over all items.
PAIRED = ("ROUGE-L", "CIDEr-D", "accuracy")


def differences(
    selection: Selection, ours: Sequence[Evaluated], theirs: Mapping[Key, dict[str, Any]]
) -> list[Difference]:
    """Ours minus theirs on each dataset, and on all of them together where there are several.

    Args:
        ours: as of `run.evaluate`.
        theirs: predictions of the other system for the same records.

    Raises:
        RSMoEError: theirs lack a record.
    """
    others = evaluate(selection, theirs, with_parts=False)
    pairs = [(one, other) for one, other in zip(ours, others, strict=True) if one.result["dataset"] != ALL_DATASETS]
    groups = {one.result["dataset"]: [(one, other)] for one, other in pairs}
    if len(pairs) > 1:
        groups[ALL_DATASETS] = pairs
    return [_difference(dataset, group) for dataset, group in groups.items()]


def _difference(dataset: str, pairs: Sequence[tuple[Evaluated, Evaluated]]) -> Difference:
    ours = [item for one, _ in pairs for item in one.scored.each]
    theirs = [item for _, other in pairs for item in other.scored.each]
    scores = {
        name: paired_difference([item[name] for item in ours], [item[name] for item in theirs])
        for name in PAIRED
        if name in ours[0]
    }
    return {"dataset": dataset, "items": len(ours), "scores": score_entries(scores)}

"""By how much one system is better than another on the same items, with paired intervals."""

from collections.abc import Mapping, Sequence

from .intervals import paired_difference
from .predict import Key, Line
from .report import ALL_DATASETS, Difference, score_entries
from .run import Evaluated, Selection, evaluate


# Scores that are means over items. BLEU and METEOR are not: they are made from sums over all items.
PAIRED = ("ROUGE-L", "CIDEr-D", "accuracy")


def differences(
    selection: Selection, ours: Sequence[Evaluated], other_predictions: Mapping[Key, Line]
) -> list[Difference]:
    """Ours minus another system's on each dataset, and on all of them together where there are several.

    Args:
        selection: the records.
        ours: as of `run.evaluate`.
        other_predictions: of the other system for the same records.

    Raises:
        RSMoEError: a record has no prediction by the other system.
    """
    theirs = evaluate(selection, other_predictions, with_expert_texts=False)
    pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].result["dataset"] != ALL_DATASETS]
    groups = {pair[0].result["dataset"]: [pair] for pair in pairs}
    if len(pairs) > 1:
        groups[ALL_DATASETS] = pairs
    return [_difference(dataset, group) for dataset, group in groups.items()]


def _difference(dataset: str, pairs: Sequence[tuple[Evaluated, Evaluated]]) -> Difference:
    ours = [scores for our, _ in pairs for scores in our.scored.each]
    theirs = [scores for _, their in pairs for scores in their.scored.each]
    paired = {
        name: paired_difference([scores[name] for scores in ours], [scores[name] for scores in theirs])
        for name in PAIRED
        if name in ours[0]
    }
    return {"dataset": dataset, "items": len(ours), "scores": score_entries(paired)}

"""One answer for a whole scene from the answers of its tiles, and how it came about.

All rules are [our decision]:

- every answer is yes or no: "yes" if a tile says yes, since a thing that is anywhere is in the scene. Of a question
  that compares ("more roads than buildings?") the more frequent one, since no tile can speak for the others.
- a question for a number or an area, answered by numbers: their sum. What several tiles cover is shared out evenly
  among them, as if things were spread evenly over each tile. A thing that an edge cuts may count twice.
- else the most frequent answer; of equally frequent ones the first, from the upper left.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..prompting_rsmoe import UNSURE


_ASKS_FOR_AMOUNT = re.compile(r"\b(how many|how much|number of|amount of|count|area of|area covered)\b", re.IGNORECASE)
_COMPARES = re.compile(r"\b(more|less|fewer|equal|same|larger|smaller|most|majority|mostly|mainly)\b", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:about |around |approximately )?(\d[\d,]*(?:\.\d+)?)\s*([a-z]*[2²]?)(?: [a-z ]+)?", re.IGNORECASE
)
_UNITS = ("", "m2", "m²", "km2", "km²", "ha", "m", "km")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_MAX_LISTED = 5


@dataclass(frozen=True)
class CombinedAnswer:
    """The answer of a scene, and how it was made of its tiles' answers, as a sentence."""

    answer: str
    how: str


def combine(question: str, answers: Sequence[str], shares: Sequence[float]) -> CombinedAnswer:
    """One answer from many.

    Args:
        question: of the user.
        answers: one for each tile that is as sure of it as was asked for.
        shares: of each of these tiles (`Grid.area_shares`).
    """
    if not answers:
        return CombinedAnswer(UNSURE["question"], "no tile is sure enough")
    plain = [answer.strip().rstrip(".").lower() for answer in answers]
    if all(answer in ("yes", "no") for answer in plain):
        if not _COMPARES.search(question):
            return _any(plain)
    elif _ASKS_FOR_AMOUNT.search(question):
        numbers = [_number(answer) for answer in plain]
        if any(number is not None for number in numbers):
            units = {number[1] for number in numbers if number is not None and number[0]} or {""}  # 0 needs no unit
            if len(units) == 1:
                return _sum(numbers, shares, units.pop())
    return _most_frequent(answers, plain)


def _any(answers: Sequence[str]) -> CombinedAnswer:
    num_yes, of_tiles = answers.count("yes"), _tiles(len(answers))
    if num_yes:
        return CombinedAnswer("yes", f"{num_yes} of {of_tiles} said yes, and one is enough")
    return CombinedAnswer("no", f"none of {of_tiles} said yes")


def _sum(numbers: Sequence[tuple[float, str] | None], shares: Sequence[float], unit: str) -> CombinedAnswer:
    counted = [(number[0], share) for number, share in zip(numbers, shares, strict=True) if number is not None]
    total = round(sum(number * share for number, share in counted))
    how = f"the sum over {_tiles(len(counted))}"
    if len(counted) < len(numbers):
        how += f" ({_tiles(len(numbers) - len(counted))} gave no number)"
    if any(share < 1 for _, share in counted):
        how += ", overlaps shared out evenly"
    if len(numbers) > 1:
        how += "; what an edge of a tile cuts may be counted twice"
    return CombinedAnswer(f"{total}{unit}", how)


def _most_frequent(answers: Sequence[str], plain: Sequence[str]) -> CombinedAnswer:
    counts = Counter(plain)
    best, num_best = counts.most_common(1)[0]
    others = [f"{answer or '(nothing)'} {count}" for answer, count in counts.most_common(_MAX_LISTED + 1)[1:]]
    if len(counts) > _MAX_LISTED + 1:
        others.append(f"{len(counts) - _MAX_LISTED - 1} more")
    how = f"the most frequent answer, of {num_best} of {_tiles(len(plain))}"
    if others:
        how += f" (others: {', '.join(others)})"
    return CombinedAnswer(answers[plain.index(best)].strip(), how)


def _number(answer: str) -> tuple[float, str] | None:
    """The number that an answer is, and its unit: "12", "3 ships", "10632m2", "two"."""
    if answer in _WORDS:
        return float(_WORDS.index(answer)), ""
    match = _NUMBER.fullmatch(answer)
    if match is None:
        return None
    unit = match[2].lower()
    return float(match[1].replace(",", "")), unit if unit in _UNITS else ""


def _tiles(number: int) -> str:
    return "1 tile" if number == 1 else f"{number} tiles"

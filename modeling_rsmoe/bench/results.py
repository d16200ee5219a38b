"""What a bench measured, as one JSON file: every single time, the machine, the versions; all that tables need."""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, write_whole
from .timing import Group


FORMAT = "rsmoe-bench-2"


class Equality(TypedDict):
    """Texts of one variant against those of another."""

    name: str
    against: str
    texts: int  # that were compared
    ties: int  # of them, those that go apart where two tokens score the same
    differences: list[str]  # what is wrong, in words; empty where all is equal
    logits: NotRequired[float]  # the largest difference of scores, relative to the largest score


class Section(TypedDict):
    """What one section measured."""

    seconds: float  # that the section took
    groups: list[Group]
    facts: dict[str, Any]  # what is no time: bytes, shares, lengths


class Results(TypedDict):
    """One run."""

    format: str
    checkpoint: dict[str, str]  # name, sha256 of its folder
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    date: str
    sections: dict[str, Section]
    equality: NotRequired[list[Equality]]


def write_results(results: Results, file: Path) -> None:
    """Write results as JSON, whole or not at all."""
    write_whole(file, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(file: Path) -> Results:
    """What `write_results` wrote.

    Raises:
        RSMoEError: the file is missing, or holds no results.
    """
    remedy = "give a file that `rsmoe bench --output` wrote"
    check_input(file, "results of a bench")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RSMoEError(f"{file} cannot be read ({error}); {remedy}") from error
    file_format = results.get("format") if isinstance(results, dict) else None
    if file_format != FORMAT:
        raise RSMoEError(
            f"{file} is no result of a bench of format {FORMAT} (its format is {file_format!r}); {remedy}"
        )
    missing = [name for name in Results.__required_keys__ if name not in results]
    if missing:
        raise RSMoEError(f"{file} lacks {', '.join(sorted(missing))}; measure again")
    return cast(Results, results)


def all_groups(results: Results) -> list[Group]:
    """Groups of all sections, in order."""
    return [group for section in results["sections"].values() for group in section["groups"]]


def group_of(results: Results, key: str) -> Group | None:
    """The group of that key, None where its section was not run."""
    return next((group for group in all_groups(results) if group["key"] == key), None)

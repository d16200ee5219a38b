"""Records that travel with a checkpoint: card, sources, licences and how it was trained, from folder to folder.

`facts` reads them. Whatever writes a checkpoint out of another one ends here.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..utils.provenance import TRAINING_RECORD
from .card import CARD, MARK, write_card
from .facts import CARD_FACTS, PICTURE, PROVENANCE, SETTINGS, Step, read_facts
from .sources import SOURCES_FILE


# What a folder says of these weights and of no others, beside its card.
_OF_THESE_WEIGHTS = (CARD_FACTS, PICTURE, SETTINGS, TRAINING_RECORD)


def carry_records(start: Path, folder: Path, name: str, steps: Sequence[Step] | None = None) -> None:
    """Give a new checkpoint what is known of the one that it was made from.

    Its config.json gets origins, licences and the steps of the training; sources.yaml is copied; what card.yaml and
    training.json say of these very weights too, unless they learned more. Where the start has a card, one is written.

    Args:
        start: the folder that it was made from.
        folder: the new one, which holds all but this; a training.json that is there stays.
        name: of the new checkpoint, for its card.
        steps: that it learned since, None where its weights are the same.
    """
    before = read_facts(start).provenance
    for file in (SOURCES_FILE, *(_OF_THESE_WEIGHTS if steps is None else ())):
        if (start / file).is_file() and not (folder / file).exists():
            shutil.copyfile(start / file, folder / file)
    if steps:
        before |= {"training": [*(before["training"] or ()), *map(asdict, steps)]}
    set_provenance(folder, before)
    if not (start / CARD).is_file():
        return
    if MARK in (start / CARD).read_text(encoding="utf-8"):
        write_card(replace(read_facts(folder), name=name), folder)
    elif steps is None:
        shutil.copyfile(start / CARD, folder / CARD)


def copy_records(start: Path, folder: Path) -> None:
    """Copy what describes a checkpoint, as it stands, to a new folder of what is exported from it.

    Raises:
        OSError: the folder exists, or cannot be written.
    """
    folder.mkdir()
    for file in (CARD, SOURCES_FILE, *_OF_THESE_WEIGHTS):
        if (start / file).is_file():
            shutil.copyfile(start / file, folder / file)


def set_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write `Facts.provenance` into a checkpoint's config.json, which every later save keeps."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {PROVENANCE: provenance}, indent=2, sort_keys=True) + "\n", encoding="utf-8")

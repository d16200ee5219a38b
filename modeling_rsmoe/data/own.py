"""People's own captions and questions, in the layouts that they are kept in; docs/how-to/data.md describes them.

ImageFolders (``metadata.jsonl``, ``.csv``, ``.parquet``) and other tables, COCO captions, LLaVA's and ShareGPT's
conversations, folders of Hugging Face datasets (``save_to_disk``, or Parquet with images inside). All are rows with an
image and texts (``rows``), and become records here. Everything in them is untrusted.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from PIL import Image

from ..errors_rsmoe import RSMoEError
from ..images_rsmoe import FORMATS
from ..prompting_rsmoe import ANSWER_SUFFIX, IMAGE_TOKEN, task_of
from ..utils.files import parse_yaml
from ..utils.progress import Progress, no_progress
from ..utils.rasters.options import AS_IN_THE_FILE, RasterOptions
from ..utils.tables import count_of
from . import splits
from .benchmarks.files import tidy
from .chips import Chips, StretchBy, find_chips
from .folder import check_images
from .records import SPLIT_FOLDERS, CaptionRecord, Entry, QuestionRecord, is_text
from .rows import TABLES, rows


Record = CaptionRecord | QuestionRecord

# Names of columns, in the order in which they are looked for; of captions any number, such as caption_1 and caption_2.
IMAGE_COLUMNS: tuple[str, ...] = ("image", "images", "file_name", "filename", "image_path", "img_path", "file_path")
IMAGE_COLUMNS += ("filepath", "image_file", "image_name", "img", "path", "file", "image_id")
CAPTION_COLUMNS = ("caption", "sentence", "text", "description", "raw")
TURN_COLUMNS = ("conversations", "conversation", "messages")
SPLIT_COLUMNS = ("split", "subset", "set")
TYPE_COLUMNS = ("question_type", "type", "category")
_PROGRESS_EVERY = 1000  # records between two reports of progress
_LONGEST_NAME = 100  # of an image out of a table
_ASKERS, _ANSWERERS = ("human", "user"), ("gpt", "assistant")
# Files beside COCO's captions and Hugging Face's Arrow that hold neither captions nor questions.
_OTHER_TABLES = re.compile(
    r"(instances|person_keypoints|stuff|panoptic|image_info)_|dataset_(info|infos|dict)\.|state\."
)
# A human turn asks for a caption if `task_of` says so, or in one of LLaVA's other wordings.
_IMAGE_WORD = r"(image|photo|photograph|picture|scene|snapshot|tile|view)s?\b"
_ASKS_FOR_CAPTION = re.compile(
    r"\b(summary|description|depiction|interpretation|explanation|overview|rundown|analysis|contents?|narrative|caption"
    rf"|elements|aspects|details|features)\s+(of|for)\s+(the|this|that|an?)\s+([\w'-]+\s+){{0,2}}{_IMAGE_WORD}"
    r"|\b(describe|summari[sz]e|characteri[sz]e|portray|illustrate|narrate|explain|caption)\s+(the|this|that|an?)\s+"
    rf"([\w'-]+\s+){{0,2}}{_IMAGE_WORD}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class OwnData:
    """What a folder of one's own holds.

    Attributes:
        records: with the splits that they are to have.
        folder: that all images are in.
        name: of the source's folder.
        notes: for the user, a line each: what was left out, which splits were made.
        chips: the images that are written as RGB PNGs.
    """

    records: Sequence[Record]
    folder: Path
    name: str
    notes: Sequence[str]
    chips: Chips


def read_own(
    source: str | Path,
    scratch: str | Path,
    *,
    only: Sequence[str] | None = None,
    val: float | None = None,
    test: float | None = None,
    seed: int | None = None,
    raster_options: RasterOptions = AS_IN_THE_FILE,
    stretch: StretchBy | None = None,
    progress: Progress = no_progress,
) -> OwnData:
    """Read a folder of one's own, or one table with the images beside it, and give it splits if it has none.

    Every image is decoded, for near duplicates to be found. Several rows about one image become one record of its
    captions, each caption once.

    Args:
        source: the folder or file.
        scratch: an empty folder, for images that lie inside Parquet or Arrow.
        only: splits to keep; by default all.
        val: share of the images that becomes val where no record has a split, by default 0.1.
        test: share of the images that becomes test, by default 0.1.
        seed: of these splits, by default 0.
        raster_options: bands and no-data value of chips (`chips`).
        stretch: of chips: "image", each by its own numbers, or "collection".
        progress: what is read.

    Raises:
        RSMoEError: nothing is found, something is not as docs/how-to/data.md says, images are missing or cannot be
            read, shares were given of records that have splits, or options of chips where there are none.
    """
    shares_given = any(value is not None for value in (val, test, seed))
    val, test = splits.VAL if val is None else val, splits.TEST if test is None else test
    seed = splits.SEED if seed is None else seed
    splits.check_shares(val, test)
    reader = _Reader(Path(source), Path(scratch))
    records = reader.read(progress)
    images = sorted({record.image for record in records})
    check_images(images, "copy them there or drop their rows")
    chips = find_chips(images, raster_options, stretch, progress)
    surprises: list[str] = []

    def read(image: Path) -> Image.Image:
        decoded = chips.read(image)
        surprises.extend(decoded.info.get("notes", ()))
        return decoded

    groups = splits.near_duplicates(images, progress, read)
    named = {record.split for record in records} - {""}
    if not named or (named == {"train"} and shares_given):
        records, notes = _drawn(records, groups, val, test, seed)
    elif shares_given:
        raise RSMoEError(
            f"{source} has the splits {', '.join(sorted(named))}; --val, --test and --seed are for images without "
            "splits, or with train alone"
        )
    else:
        records = [record if record.split else replace(record, split="test") for record in records]
        notes = _crossing(records, groups)
        if named == {"train"} and not only and all(record.split == "train" for record in records):
            notes.append("all images are train, and none is left to evaluate on: --val 0.1 --test 0.1 splits them")
    known = {record.split for record in records}
    if unknown := [name for name in only or () if name not in known]:
        raise RSMoEError(f'unknown split "{unknown[0]}" in {source}; known: {", ".join(sorted(known))}')
    records = [record for record in records if record.split in (only or known)]
    notes = [*reader.notes, *filter(None, [chips.note]), *notes]
    if surprises:
        notes.append(surprises[0] + (f"; {len(surprises) - 1:,} more such notes" if surprises[1:] else ""))
    return OwnData(records, reader.folder, reader.name, notes, chips)


def _drawn(
    records: Iterable[Record], groups: Sequence[Sequence[Path]], val: float, test: float, seed: int
) -> tuple[list[Record], list[str]]:
    """The records with splits that are drawn, and a line about these."""
    split_of = splits.draw_splits(groups, val, test, seed)
    together = [group for group in groups if len(group) > 1]
    note = (
        f"splits made by image: {splits.split_line(split_of.values())} (--val {val:g} --test {test:g} --seed {seed}); "
        f"near duplicates that stay together: {count_of(sum(map(len, together)), 'image')}"
    )
    return [replace(record, split=split_of[record.image]) for record in records], [note]


def _crossing(records: Iterable[Record], groups: Iterable[Sequence[Path]]) -> list[str]:
    """A warning of near duplicates in several of the splits that the records came with."""
    splits_of: dict[Path, set[str]] = {}
    for record in records:
        splits_of.setdefault(record.image, set()).add(record.split)
    crossing = [group for group in groups if len(set().union(*(splits_of[image] for image in group))) > 1]
    if not crossing:
        return []
    example = " and ".join(str(image) for image in crossing[0][:2])
    return [
        f"near duplicates in several splits: {count_of(len(crossing), 'group')}, such as {example}; scores will be "
        "better than they should be"
    ]


class _Reader:
    """Rows of all tables of a source -> records."""

    def __init__(self, source: Path, scratch: Path):
        if not source.exists():
            raise RSMoEError(f"{source} does not exist; give the folder with your images and captions")
        self.root = (source if source.is_dir() else source.parent).absolute()
        self.tables = _tables(self.root) if source.is_dir() else [source.absolute()]
        self.name = self.root.resolve().name
        self.folder = self.root  # the scratch folder once an image came out of a table
        self.notes: list[str] = []
        self._scratch = scratch.absolute()
        self._named = False  # whether a row named a file
        self._left_out: Counter[str] = Counter()
        self._files: dict[str, list[Path]] = {}
        self._embedded: dict[str, Path] = {}

    def read(self, progress: Progress) -> list[Record]:
        """All records; those without a split have ``""``."""
        captions: dict[tuple[Path, str, str], CaptionRecord] = {}
        questions: list[Record] = []
        for file in self.tables:
            for number, record in enumerate(self._records(file)):
                if number % _PROGRESS_EVERY == 0:
                    progress(f"reading {file.name}", number, unit="records")
                if isinstance(record, QuestionRecord):
                    questions.append(record)
                else:
                    key = (record.image, record.dataset, record.split)
                    captions[key] = _merged(captions[key], record) if key in captions else record
        records = [*captions.values(), *questions]
        self.notes += [f"left out: {count_of(count, 'row')} {reason}" for reason, count in self._left_out.items()]
        if not records:
            found = "; ".join(self.notes) or f"no table ({', '.join(TABLES)})"
            raise RSMoEError(
                f"{self.root} has no captions or questions: {found}. docs/how-to/data.md shows what is read"
            )
        return records

    def _records(self, file: Path) -> Iterator[Record]:
        parts = (*file.relative_to(self.root).parts[:-1], file.stem)
        of_file = next(filter(None, map(split_in, reversed(parts))), "")
        for number, entry in enumerate(rows(file)):
            if number == 0 and not _is_known(entry):
                columns = ", ".join(entry.values) or "none"
                self.notes.append(f"{file.name} has no columns of images and texts (found: {columns})")
                return
            records = list(_texts(entry))
            named = _named_split(entry)
            image = self._image(entry, named or of_file) if records else None
            if image is None:
                self._left_out["about no image, or several" if records else "without a text"] += 1
                continue
            split = named or split_in(image.relative_to(self.folder).parts[0]) or of_file
            dataset = "".join(_list(entry, "dataset")) or self.name
            yield from (replace(record, image=image, dataset=dataset, split=split) for record in records)

    # ---- images

    def _image(self, entry: Entry, split: str) -> Path | None:
        """The image of a row; None if it is about none, or several."""
        column = _first(entry, IMAGE_COLUMNS)
        value = entry.values.get(column)
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else None
        if value in (None, ""):
            return None
        if isinstance(value, dict):
            content, value = value.get("bytes"), value.get("path")
            if isinstance(content, bytes):
                return self._extract(entry, content, value)
        if self.folder != self.root:
            raise entry.error(f"its image is the file {value!r}, other rows hold theirs; make two folders of them")
        self._named = True
        return self._find(replace(entry, values={column: value}), column, split)

    def _extract(self, entry: Entry, content: bytes, path: Any) -> Path:
        """An image inside a table as a file; one that comes again, as with each of its questions, is the same file."""
        if self._named:
            raise entry.error("it holds its image, other rows name files; make two folders of them")
        self.folder = self._scratch
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._embedded:
            name = PureWindowsPath(path).name if is_text(path) else f"{digest[:16]}{_suffix(content)}"
            name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[-_LONGEST_NAME:].lstrip(".")
            file = self._scratch / (name or digest[:16])
            if file.exists():
                file = file.with_name(f"{digest[:16]}{file.suffix}")
            file.write_bytes(content)
            self._embedded[digest] = file
        return self._embedded[digest]

    def _find(self, entry: Entry, column: str, split: str) -> Path:
        """The file that a row names: beside its table, in the source, or the only one of that name below it.

        Names may be in another case, have a suffix less, and be written with a Windows separator.
        """
        entry.path(column)  # refuses what leaves the folder
        name = PurePath(*PureWindowsPath(entry.text(column).strip()).parts)
        if not name.name:
            raise entry.error(f'{column} "{entry.text(column)}" is a folder; write the name of an image')
        for folder in (entry.folder, self.root):
            if (folder / name).is_file():
                return (folder / name).absolute()
        if not self._files:
            for place, _, names in os.walk(self.root):
                for file in (Path(place, name) for name in names):
                    for key in {file.name.lower(), file.stem.lower()}:
                        self._files.setdefault(key, []).append(file)
        wanted = name.as_posix().lower()
        found = [
            file
            for file in self._files.get(name.name.lower(), ())
            if file.suffix.lower() not in TABLES
            and any(f"/{path.as_posix()}".lower().endswith(f"/{wanted}") for path in (file, file.with_suffix("")))
        ]
        if len(found) > 1:
            found = [file for file in found if split and split in map(split_in, file.parts)] or found
        if len(found) > 1:
            raise entry.error(f'{column} "{name}" may be {found[0]} or {found[1]}; write the path from {self.root}')
        return found[0] if found else self.root / name


def _tables(root: Path) -> list[Path]:
    """The files of a folder that hold rows: Arrow, else ``metadata.*`` wherever it is, else tables in usual places."""
    arrow = [file for file in sorted(root.rglob("*.arrow")) if not file.name.startswith("cache-")]
    if arrow:
        return arrow
    metadata = [file for file in sorted(root.rglob("metadata.*")) if file.suffix.lower() in TABLES]
    if metadata:
        return metadata
    places = [root, *(folder for folder in sorted(root.iterdir()) if folder.is_dir() and _may_hold_tables(folder))]
    files = [file for folder in places for file in sorted(folder.iterdir()) if file.suffix.lower() in TABLES]
    return [file for file in files if file.is_file() and not _OTHER_TABLES.match(file.name) and file.name[0] != "."]


def _may_hold_tables(folder: Path) -> bool:
    return folder.name.lower() in ("annotations", "data", "captions") or bool(split_in(folder.name))


def _suffix(content: bytes) -> str:
    """Of an image's bytes; what is none is refused when it is decoded."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return f".{str(image.format).lower()}"
    except Exception:  # libraries raise errors of any class for a damaged file
        return ""


# ---- what a row says


def split_in(name: object) -> str:
    """The split that a word of a name stands for: ``captions_val2017`` is val; ``""`` if there is none."""
    words = re.findall("[a-z]+", str(name).lower())
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), "")


def _named_split(entry: Entry) -> str:
    value = entry.values.get(_first(entry, SPLIT_COLUMNS))
    return (SPLIT_FOLDERS.get(value.strip().lower()) or value.strip()) if isinstance(value, str) else ""


def _first(entry: Entry, columns: Iterable[str]) -> str:
    """The first of the columns that a row has, or ``""``."""
    return next((column for column in columns if column in entry.values), "")


def _caption_columns(entry: Entry) -> list[str]:
    for name in CAPTION_COLUMNS:
        if found := [column for column in entry.values if re.fullmatch(rf"{name}s?([ _-]?\d+)?", column)]:
            return found
    return []


def _merged(first: CaptionRecord, second: CaptionRecord) -> CaptionRecord:
    """One record of two rows about an image: their texts, each once."""
    captions = tuple(dict.fromkeys([*first.captions, *second.captions]))
    if first.aspects is None or second.aspects is None:
        return replace(first, captions=captions, aspects=first.aspects or second.aspects)
    aspects = {
        name: tuple(dict.fromkeys([*first.aspects.get(name, ()), *second.aspects.get(name, ())]))
        for name in dict.fromkeys([*first.aspects, *second.aspects])
    }
    return replace(first, captions=captions, aspects=aspects)


def _is_known(entry: Entry) -> bool:
    """Whether a row's columns are those of a table that is read. (Conversations may begin with one of no image.)"""
    has_texts = "question" in entry.values or _caption_columns(entry)
    return bool(_first(entry, TURN_COLUMNS) or (_first(entry, IMAGE_COLUMNS) and has_texts))


def _texts(entry: Entry) -> Iterator[Record]:
    """Records of a row's texts, without their image."""
    if column := _first(entry, TURN_COLUMNS):
        yield from _turns(entry, column)
        return
    captions = [text for column in _caption_columns(entry) for text in _list(entry, column)]
    if captions:
        yield CaptionRecord(Path(), "", "", tuple(dict.fromkeys(captions)), entry.aspects())
    if _list(entry, "question"):
        answer = entry.values.get("answer")
        if type(answer) in (int, float):
            answer = str(answer)
        question = replace(entry, values={**entry.values, "answer": answer})
        kind = _list(entry, _first(entry, TYPE_COLUMNS)) or ["other"]
        yield QuestionRecord(Path(), "", "", tidy(question.text("question")), kind[0], tidy(question.text("answer")))


def _list(entry: Entry, column: str) -> list[str]:
    """The texts of a cell: one, a list, or a list that was written into a CSV; empty ones are left out."""
    value = entry.values.get(column)
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        try:
            listed = parse_yaml(value)  # JSON, and Python's own way of writing lists
        except ValueError:
            listed = None
        value = listed if isinstance(listed, list) and all(isinstance(text, str) for text in listed) else value
    texts = value if isinstance(value, list) else [value]
    texts = [text.get(_first_key(text)) if isinstance(text, dict) else text for text in texts]
    if wrong := [text for text in texts if not isinstance(text, (str, type(None)))]:
        raise entry.error(f'"{column}" holds {wrong[0]!r}, expected text; write it as a string')
    return [tidy(text) for text in texts if text and text.strip()]


def _first_key(values: dict[str, Any]) -> str:
    return next((name for name in ("raw", *CAPTION_COLUMNS) if name in values), "")


def _turns(entry: Entry, column: str) -> Iterator[Record]:
    """A caption or a question of each turn of a human and the answer to it."""
    turns = entry.field(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise entry.error(f'"{column}" is no list of turns, such as {{"from": "human", "value": "..."}}')
    asked: str | None = None
    for number, turn in enumerate(turns):
        speaker, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if isinstance(said, list):  # of parts, as in chat templates
            said = " ".join(str(part.get("text") or "") for part in said if isinstance(part, dict))
        if speaker == "system":
            continue
        expected = _ASKERS if asked is None else _ANSWERERS
        if speaker not in expected or not isinstance(said, str):
            raise entry.error(
                f'"{column}"[{number}] is {str(turn)[:80]}, expected a text from {" or ".join(expected)}'
            )
        if asked is None:
            asked = tidy(said.replace(IMAGE_TOKEN, " ")).removesuffix(ANSWER_SUFFIX).strip()
            continue
        if answer := tidy(said):
            if asks_for_caption(asked):
                yield CaptionRecord(Path(), "", "", (answer,))
            else:
                yield QuestionRecord(Path(), "", "", asked, "other", answer)
        asked = None


def asks_for_caption(instruction: str) -> bool:
    """Whether a human turn asks for a caption: it is empty, or ``generate`` would take it so, or LLaVA words it so."""
    return not instruction or task_of(instruction) != "question" or bool(_ASKS_FOR_CAPTION.search(instruction))

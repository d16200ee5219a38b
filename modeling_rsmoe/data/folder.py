"""Writing a data folder (``records`` reads it), and making Hugging Face datasets of records."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import disk_errors, parse_json, whole_file, write_whole
from ..utils.progress import Progress, no_progress
from .chips import NO_CHIPS, Chips
from .label_questions import object_questions, scene_questions
from .labels import OBJECTS_FILE, SCENES_FILE, ObjectRecord, SceneRecord, read_objects, read_scenes
from .mosaics import draw_mosaics
from .records import CAPTIONS_FILE, QUESTIONS_FILE, CaptionRecord, QuestionRecord, read_captions, read_questions


if TYPE_CHECKING:
    from datasets import DatasetDict

Record = CaptionRecord | QuestionRecord | ObjectRecord | SceneRecord
_FILES: dict[type, str] = {CaptionRecord: CAPTIONS_FILE, ObjectRecord: OBJECTS_FILE, SceneRecord: SCENES_FILE}
REMEDY = "Copy the folder to where you may write, and check the free space."
_NAMED_IMAGES = 3  # missing images in an error
_PROGRESS_EVERY = 1000  # records between two reports of progress


def write_folder(
    records: Iterable[Record],
    source: Path,
    out: Path,
    name: str,
    *,
    questions_file: str = QUESTIONS_FILE,
    link: bool = False,
    remedy: str = "copy them there",
    chips: Chips = NO_CHIPS,
    progress: Progress = no_progress,
) -> Counter[tuple[str, str, str]]:
    """Write records and their images into a data folder, beside what it holds of other datasets and splits.

    Records that the folder has of the same dataset and split are replaced, when all new ones are known to be good and
    all images are there.

    Args:
        records: captions, questions, object labels, scenes; their images are in ``source``; consumed once.
        source: the folder of the images.
        out: the data folder, which is made if need be.
        name: images become ``out/images/NAME/...`` and keep their path within ``source``, and their bytes; chips get
            the suffix ``.png``.
        questions_file: where questions are written.
        link: make hard links instead of copies of the images, on the same file system.
        remedy: what to do about missing images.
        chips: images that are written as RGB PNGs.
        progress: how many records are read and images copied.

    Returns:
        The number of records by file, dataset and split.

    Raises:
        RSMoEError: images are missing, two would become one file, or a file cannot be written.
    """
    images: dict[Path, Path] = {}  # in the source -> in the data folder
    files = {**_FILES, QuestionRecord: questions_file}
    lines: dict[str, list[str]] = {file: [] for file in files.values()}
    counts: Counter[tuple[str, str, str]] = Counter()
    verb = "linking" if link else "copying"
    try:
        for number, record in enumerate(records):
            if number % _PROGRESS_EVERY == 0:
                progress(f"reading {name}", number, unit="records")
            if record.image not in images:
                target = Path("images", name, record.image.relative_to(source.absolute()))
                is_png = record.image in chips.files
                images[record.image] = target.with_name(f"{target.name}.png") if is_png else target
            file = files[type(record)]
            lines[file].append(_line(record, images[record.image]))
            counts[file, record.dataset, record.split] += 1
        check_images(images, remedy)
        for target, count in Counter(images.values()).items():
            if count > 1:
                raise RSMoEError(f"a chip would become {target.name}, as another image is called; rename one of them")
        for done, (image, target) in enumerate(images.items()):
            progress(f"{verb} {len(images)} images", done, len(images), "images")
            if image in chips.files:
                with whole_file(out / target) as unfinished:
                    chips.read(image).save(unfinished, "PNG")
            else:
                _place(image, out / target, link)
        for file, new in lines.items():
            if new:
                write_whole(out / file, "".join([*new, *_other_lines(out / file, counts)]))
    except OSError as error:
        raise RSMoEError(
            f"cannot write {out} from {source} ({error}); check the permissions and the free space"
        ) from error
    return counts


def add_label_questions(folder: str | Path) -> Counter[tuple[str, str, str]]:
    """Make questions of a data folder's ``objects.jsonl`` and ``scenes.jsonl`` and write them into its ``vqa.jsonl``.

    Those about the labels of ``NAME`` are of the dataset ``NAME-labels``; they replace what was made before.

    Args:
        folder: the data folder.

    Returns:
        The number of questions by file, dataset and split.

    Raises:
        RSMoEError: there are no labels, as of ``read_objects``, or the file cannot be written.
    """
    folder = Path(folder)
    objects, scenes = read_objects(folder), read_scenes(folder)
    if not objects and not scenes:
        raise RSMoEError(f"{folder} has no labels to ask about; add {OBJECTS_FILE} or {SCENES_FILE}")
    names = list(dict.fromkeys(record.dataset for record in objects))  # each balanced by itself
    made = [object_questions([record for record in objects if record.dataset == name]) for name in names]
    records = [replace(record, dataset=f"{record.dataset}-labels") for record in chain(*made, scene_questions(scenes))]
    with disk_errors("cannot write", REMEDY):
        return _add_questions(folder, records)


def add_mosaics(
    folder: str | Path, number: int, side: int = 2, seed: int = 0, progress: Progress = no_progress
) -> Counter[tuple[str, str, str]]:
    """Make mosaics of the images of a data folder's ``scenes.jsonl`` and questions about them, in its ``vqa.jsonl``.

    Those of ``NAME`` are of the dataset ``NAME-mosaics``; they replace what was made before.

    Args:
        folder: the data folder.
        number: of mosaics of each dataset and split.
        side: images in a row of a mosaic.
        seed: of the drawing.
        progress: how many mosaics are drawn.

    Returns:
        The number of questions by file, dataset and split.

    Raises:
        RSMoEError: there are no scenes, or only one in a split; an image cannot be read, or a file not be written.
    """
    folder = Path(folder)
    scenes = read_scenes(folder)
    if not scenes:
        raise RSMoEError(f"{folder} has no scenes to make mosaics of; add {SCENES_FILE}")
    groups: dict[tuple[str, str], list[SceneRecord]] = {}
    for record in scenes:
        groups.setdefault((record.dataset, record.split), []).append(record)
    made: list[QuestionRecord] = []
    with disk_errors("cannot write", REMEDY):
        for (dataset, split), records in groups.items():
            names = sorted({record.scene for record in records})
            if len(names) < 2:
                raise RSMoEError(f"{dataset} {split} has one scene alone, {names[0]}; a question needs another")
            generator = random.Random(seed)
            for place, mosaic in enumerate(draw_mosaics(records, number, side, seed)):
                progress(f"drawing mosaics of {dataset} {split}", place, number, "mosaics")
                image = folder.absolute() / "images" / f"{dataset}-mosaics" / f"{split}-{place}.png"
                with whole_file(image) as unfinished:
                    mosaic.draw().save(unfinished, "PNG")
                made += mosaic.questions(image, names, generator)
        return _add_questions(folder, made)


def _add_questions(folder: Path, records: Iterable[QuestionRecord]) -> Counter[tuple[str, str, str]]:
    """Write questions about a data folder's images, in place of those of the same dataset and split."""
    lines, counts = [], Counter[tuple[str, str, str]]()
    for record in records:
        lines.append(_line(record, record.image.relative_to(folder.absolute())))
        counts[QUESTIONS_FILE, record.dataset, record.split] += 1
    write_whole(folder / QUESTIONS_FILE, "".join([*_other_lines(folder / QUESTIONS_FILE, counts), *lines]))
    return counts


def to_datasets(folder: str | Path, task: Literal["captioning", "vqa"]) -> "DatasetDict":
    """A data folder (or ImageFolder) as Hugging Face datasets, one for each split; columns as ``benchmarks.load``.

    Args:
        folder: the data folder.
        task: which of its records.

    Raises:
        RSMoEError: as for ``read_captions`` and ``read_questions``.
    """
    return as_datasets(read_captions(folder) if task == "captioning" else read_questions(folder), task)


def as_datasets(
    records: Iterable[Record],
    task: Literal["captioning", "vqa"],
    remedy: str = "copy them there",
) -> "DatasetDict":
    """The records of one task as Hugging Face datasets; images must exist here and are decoded when they are used.

    Args:
        records: of both tasks; those of ``task`` are taken.
        task: captions or questions.
        remedy: what to do about missing images.

    Raises:
        RSMoEError: images are missing.
    """
    datasets = require("datasets", "eval")
    kind = CaptionRecord if task == "captioning" else QuestionRecord
    columns = ("captions",) if task == "captioning" else ("question", "question_type", "answer")
    text = datasets.Value("string")
    types = {name: datasets.List(text) if name == "captions" else text for name in columns}
    features = datasets.Features({"image": datasets.Image(), "dataset": text, **types})
    rows: dict[str, list[dict]] = {}
    for record in records:
        if isinstance(record, kind):
            texts = {name: getattr(record, name) for name in ("dataset", *columns)}
            rows.setdefault(record.split, []).append({"image": str(record.image), **texts})
    check_images({Path(row["image"]): None for of_split in rows.values() for row in of_split}, remedy)
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(of_split, features=features) for split, of_split in rows.items()}
    )


def write_parquet(tables: "DatasetDict", out: str | Path, shard_size: int = 500) -> list[Path]:
    """Parquet files that hold the images' bytes, ``out/data/SPLIT-00000-of-00003.parquet``, for any machine.

    ``datasets.load_dataset(out)`` reads them, and the Hub shows them as a dataset. (``to_parquet`` alone writes the
    paths of images; ``push_to_hub`` puts the images in by itself.) Each question carries its image.

    Args:
        tables: of ``to_datasets`` or ``benchmarks.load``.
        out: the folder to write.
        shard_size: records in one file; their images are in memory together.

    Returns:
        The files.

    Raises:
        RSMoEError: a file cannot be written.
    """
    embed_table_storage = require("datasets.table", "eval").embed_table_storage

    written = []
    with disk_errors("cannot write", "Check the permissions and the free space."):
        for split, table in tables.items():
            count = max(1, -(-len(table) // shard_size))
            for number in range(count):
                shard = table.shard(count, number, contiguous=True).with_format("arrow")
                shard = shard.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
                file = Path(out) / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"
                with whole_file(file) as unfinished:
                    shard.with_format(None).to_parquet(unfinished)
                written.append(file)
    return written


def _line(record: Record, image: Path) -> str:
    """A record as its file holds it, with the image's path in the folder."""
    values = {name: value for name, value in vars(record).items() if value is not None}
    return json.dumps({**values, "image": image.as_posix()}, ensure_ascii=False) + "\n"


def _other_lines(file: Path, replaced: Container[tuple[str, str, str]]) -> Iterator[str]:
    """What a file of a data folder holds of other datasets and splits."""
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            values = parse_json(line.encode()) if line.strip() else None
            if values is not None and (file.name, values["dataset"], values["split"]) not in replaced:
                yield f"{line}\n"
        except (ValueError, KeyError, TypeError) as error:
            raise RSMoEError(f"{file}:{number} is not a record of a data folder ({error}); correct the line") from None


def check_images(images: Collection[Path], remedy: str) -> None:
    """Raises RSMoEError if some of the files are not there, with their number and what to do."""
    missing = [image for image in images if not os.path.isfile(image)]
    if missing:
        named = ", ".join(map(str, missing[:_NAMED_IMAGES])) + (", ..." if missing[_NAMED_IMAGES:] else "")
        raise RSMoEError(f"{len(missing)} of {len(images)} images are missing: {named}; {remedy}")


def _place(image: Path, target: Path, link: bool) -> None:
    size = image.stat().st_size
    if target.is_file() and target.stat().st_size == size:
        return
    with whole_file(target) as unfinished:
        if link:
            try:
                os.link(image, unfinished)
            except OSError as error:
                raise RSMoEError(f"cannot link {image} to {target} ({error}); leave out --link to copy") from error
        else:
            shutil.copyfile(image, unfinished)

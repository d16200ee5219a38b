"""RSIVQA: questions about the images of five older datasets, in text files with a line ``image:question?answer`` each.

Source: Zheng et al., "Mutual Attention Inception Network for Remote Sensing Visual Question Answering", TGRS 2021,
https://github.com/spectralpublic/RSIVQA. Three kinds of questions were published together and are kept apart here:

- ``rsivqa``: those about some images of UCM (``ucm_res.txt``), written by people, and those about DOTA and HRRSD, made
  from their boxes;
- ``rsivqa-scenes``: "what is the theme of this picture?" about the rest of UCM, Sydney and RSICD (in the folder AID),
  made from scene labels. They are written to a file of their own, ``vqa_scene_derived.jsonl``.

There is no official split. [our decision] An image of UCM, Sydney and RSICD has the split of the captioning dataset
of that name, so that no test image is trained on; DOTA has its own train and val; an image of HRRSD, or of no split in
the captioning dataset, is in train, val or test by a hash of its name, 80 / 10 / 10 %.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors_rsmoe import RSMoEError
from ...utils.files import check_input
from ..records import Entry, QuestionRecord
from .files import Benchmark, Source, hash_split, question_record, split_of, tidy
from .karpathy import karpathy_entries


URL = "https://github.com/spectralpublic/RSIVQA"
# What people wrote where they had no answer.
NO_ANSWERS = frozenset({"i cannot see it", "i don't know"})
# The published questions have no type; the first of these that begins the question decides.
TYPES = {
    "how many": "count",
    "does this picture contain": "presence",
    "what is the location": "location",
    "what is the theme": "scene",
}


@dataclass(frozen=True)
class _TextFile:
    """One of the published text files."""

    name: str
    dataset: str
    suffix: str = ""  # of image files, where the text file leaves it out
    split_file: str | None = None  # of the captioning dataset, in the same folder
    split: str | None = None  # of all its lines
    excluded_by: str | None = None  # a text file whose images are left out


HUMAN_FILE = "UCM/ucm_res.txt"
FILES = (
    _TextFile(HUMAN_FILE, "RSIVQA-UCM", split_file="UCM/dataset.json"),
    _TextFile("DOTA/dota_train_vqa2.txt", "RSIVQA-DOTA", suffix=".png", split="train"),
    _TextFile("DOTA/dota_val_vqa2.txt", "RSIVQA-DOTA", suffix=".png", split="val"),
    _TextFile("HRRSD/opt_val_vqa.txt", "RSIVQA-HRRSD", suffix=".jpg"),
)
SCENE_FILES = (
    _TextFile("UCM/ucm_vqa.txt", "RSIVQA-UCM", split_file="UCM/dataset.json", excluded_by=HUMAN_FILE),
    _TextFile("Sydney/sydney_vqa.txt", "RSIVQA-Sydney", split_file="Sydney/dataset.json"),
    _TextFile("AID/rsicd_vqa.txt", "RSIVQA-RSICD", split_file="AID/dataset_rsicd.json"),
)


def question_type(question: str) -> str:
    """The type of a question by its first words, else ``other``.

    >>> question_type("How many cars in the picture?")
    'count'
    """
    return next((kind for start, kind in TYPES.items() if question.lower().startswith(start)), "other")


def _read(source: Source, splits: Sequence[str]) -> Iterator[QuestionRecord]:
    return _read_files(source, splits, FILES)


def _read_scenes(source: Source, splits: Sequence[str]) -> Iterator[QuestionRecord]:
    return _read_files(source, splits, SCENE_FILES)


def _read_files(source: Source, splits: Sequence[str], files: Sequence[_TextFile]) -> Iterator[QuestionRecord]:
    """The text files that are there: each needs the images of another dataset, and few people have all."""
    present = [file for file in files if (source.folder / file.name).is_file()]
    if not present:
        source.file(*(file.name for file in files))  # says which files are missing
    for file in present:
        if file.split not in (None, *splits):
            continue
        images = source.directory(f"{Path(file.name).parent}/images")
        official: dict[str, str] = {}
        if file.split_file:
            for entry in karpathy_entries(source.file(file.split_file), images):
                official[entry.text("filename")] = split_of(entry, source.benchmark.splits)
        excluded: set[str] = set()
        if file.excluded_by:
            excluded = {entry.text("image") for entry in _lines(source.file(file.excluded_by), images)}
        for entry in _lines(source.folder / file.name, images):
            name = entry.text("image")
            split = file.split or official.get(name) or hash_split(name)
            if split not in splits or name in excluded or _is_unanswerable(entry):
                continue
            image = Entry(entry.where, images, {"image": name + file.suffix}).path("image")
            yield question_record(entry, image, file.dataset, split, ("question", "question_type", "answer"))


def _lines(file: Path, images: Path) -> Iterator[Entry]:
    check_input(file, "a published file")
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{file}:{number}"
                image, colon, rest = line.strip().partition(":")
                question, mark, answer = rest.strip().partition("?")
                if not (image and colon and question and mark):
                    raise RSMoEError(f"{where}: {line.strip()[:100]!r} found, expected image:question?answer")
                values = {"image": image, "question": f"{question}?", "answer": answer.strip()}
                yield Entry(where, images, {**values, "question_type": question_type(question)})
    except UnicodeDecodeError as error:
        raise RSMoEError(f"{file} is not UTF-8 text ({error}); download it again") from None


def _is_unanswerable(entry: Entry) -> bool:
    """Whether the line asks about nothing ("How many  in the picture?") or its answer says nothing."""
    question, answer = entry.values["question"], entry.values["answer"]
    return question != tidy(question) or answer in NO_ANSWERS or not answer


RSIVQA = Benchmark(key="rsivqa", name="RSIVQA", tasks=("vqa",), splits=("train", "val", "test"), url=URL, read=_read)
RSIVQA_SCENES = Benchmark(
    key="rsivqa-scenes",
    name="RSIVQA",
    tasks=("vqa",),
    splits=("train", "val", "test"),
    url=URL,
    read=_read_scenes,
    questions_file="vqa_scene_derived.jsonl",
)

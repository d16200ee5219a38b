"""EuroSAT: 27,000 Sentinel-2 images of 64 px in 10 scenes, in a folder for each scene.

Source: Helber et al., "EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover
Classification", JSTARS 2019, https://github.com/phelber/EuroSAT (RGB; MIT).

There is no official split. The lists that torchgeo publishes (``eurosat-train.txt``, ``eurosat-val.txt``,
``eurosat-test.txt``) are used where they lie beside the images; else an image is in train, val or test by a hash of
its name, 80 / 10 / 10 % [our decision].
"""

from collections.abc import Iterator, Sequence

from ...errors_rsmoe import RSMoEError
from ...utils.files import check_input
from ..label_questions import scene_questions
from ..labels import SceneRecord
from .files import Benchmark, Record, Source, hash_split


URL = "https://github.com/phelber/EuroSAT"
SPLITS = ("train", "val", "test")


def _read(source: Source, splits: Sequence[str]) -> Iterator[Record]:
    """The scene of each image, then the questions about them."""
    folder = source.directory("2750", "EuroSAT/2750", "EuroSAT_RGB", "EuroSAT")
    listed = _lists(source)
    scenes = []
    for image in sorted(folder.absolute().glob("*/*.jpg")):
        split = hash_split(image.name) if listed is None else listed.get(image.stem, "")
        if split in splits:
            scenes.append(SceneRecord(image, source.benchmark.name, split, image.parent.name))
    yield from scenes
    yield from scene_questions([record for of_split in splits for record in scenes if record.split == of_split])


def _lists(source: Source) -> dict[str, str] | None:
    """Name of an image without its suffix -> split; None where there are no lists."""
    files = {split: source.folder / f"eurosat-{split}.txt" for split in SPLITS}
    there = [file for file in files.values() if file.is_file()]
    if not there:
        return None
    splits = {}
    for split, file in files.items():
        if file not in there:
            raise RSMoEError(f"{file} is missing, but {there[0].name} is there; give all three lists, or none")
        check_input(file, "a list of images")
        for name in file.read_text(encoding="utf-8").split():
            splits[name.removesuffix(".jpg").removesuffix(".tif")] = split
    return splits


EUROSAT = Benchmark("eurosat", "EuroSAT", ("vqa",), SPLITS, URL, _read)

"""UCM-Multilabel: 17 object labels for the 2,100 images of UC Merced Land Use, by people.

Source: Chaudhuri et al., "Multilabel Remote Sensing Image Retrieval Using a Semisupervised Graph-Theoretic Method",
TGRS 2018, http://www.bigearth.eu/datasets; the images: http://weegee.vision.ucmerced.edu/datasets/landuse.html.

[our decision] An image has its split of UCM-Captions, whose ``dataset.json`` must be there, so that no test image is
trained on. UCM-Captions numbers the images from 1 to 2,100, class after class in alphabetical order.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors_rsmoe import RSMoEError
from ..labels import ObjectRecord
from .files import Benchmark, Record, Source
from .multilabel import caption_splits, labels_and_questions, read_table


URL = "http://www.bigearth.eu/datasets"
CLASSES = "agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest freeway golfcourse"
CLASSES += " harbor intersection mediumresidential mobilehomepark overpass parkinglot river runway sparseresidential"
CLASSES += " storagetanks tenniscourt"
CLASS_PLACES = {name: place for place, name in enumerate(CLASSES.split())}
IMAGES_PER_CLASS = 100


def caption_name(name: str) -> str | None:
    """The file of UCM-Captions with the image of this name; None where the name is of another form.

    >>> caption_name("agricultural00"), caption_name("airplane07")
    ('1.tif', '108.tif')
    """
    match = re.fullmatch(r"([a-z]+)(\d\d)", name)
    if match is None or match[1] not in CLASS_PLACES:
        return None
    return f"{CLASS_PLACES[match[1]] * IMAGES_PER_CLASS + int(match[2]) + 1}.tif"


def _read(source: Source, splits: Sequence[str]) -> Iterator[Record]:
    file = source.file("LandUse_Multilabeled.txt", "multilabels/LandUse_Multilabeled.txt")
    images = source.directory("Images", "UCMerced_LandUse/Images").absolute()
    official = caption_splits(source, "dataset.json", "UCM_captions/dataset.json")
    records = []
    for name, present, absent in read_table(file, "\t"):
        split = official.get(caption_name(name) or "")
        if split is None:
            raise RSMoEError(f"{file}: no image of UCM-Captions is {name!r}; are both files as published?")
        image: Path = images / name[:-2] / f"{name}.tif"
        records.append(ObjectRecord(image, source.benchmark.name, split, present, absent))
    yield from labels_and_questions(records, splits)


UCM_MULTILABEL = Benchmark("ucm-multilabel", "UCM-Multilabel", ("vqa",), ("train", "val", "test"), URL, _read)

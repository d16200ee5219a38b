"""AID-Multilabel: 17 object labels for 3,000 images of AID, by people.

Source: Hua et al., "Relation Network for Multilabel Aerial Image Classification", TGRS 2020,
https://github.com/Hua-YS/AID-Multilabel-Dataset.

[our decision] RSICD's images that have a scene in their name are AID's without a border. An image has its split of
RSICD, whose ``dataset_rsicd.json`` must be there, so that no test image is trained on; one that RSICD does not have
is in train, val or test by a hash of its name, 80 / 10 / 10 %. The published halves (``images_tr``, ``images_test``)
are not used as splits.
"""

from collections.abc import Iterator, Sequence

from ...errors_rsmoe import RSMoEError
from ..labels import ObjectRecord
from .files import Benchmark, Record, Source, hash_split
from .multilabel import caption_splits, labels_and_questions, read_table


URL = "https://github.com/Hua-YS/AID-Multilabel-Dataset"
HALVES = ("images_tr", "images_test")


def _read(source: Source, splits: Sequence[str]) -> Iterator[Record]:
    file = source.file("multilabel.csv", "Multilabel.csv")
    folders = [source.directory(half).absolute() for half in HALVES]
    # Both with and without a folder for each scene.
    images = {image.stem: image for folder in folders for image in sorted(folder.rglob("*.jpg"))}
    official = caption_splits(source, "dataset_rsicd.json", "annotations_rsicd/dataset_rsicd.json")
    records = []
    for name, present, absent in read_table(file, ","):
        image = images.get(name.removesuffix(".jpg"))
        if image is None:
            raise RSMoEError(
                f"the image {name} of {file} is in neither of {', '.join(HALVES)}; {source.benchmark.remedy}"
            )
        split = official.get(image.name.lower()) or hash_split(image.name.lower())
        records.append(ObjectRecord(image, source.benchmark.name, split, present, absent))
    yield from labels_and_questions(records, splits)


AID_MULTILABEL = Benchmark("aid-multilabel", "AID-Multilabel", ("vqa",), ("train", "val", "test"), URL, _read)

"""Mosaics of scene images: several places in one image, with questions as RSVQA-LR asks them [our decision].

- Presence: "Is there a forest?", for each mosaic once where it is and once where it is not.
- Comparison: "Are there more forests than rivers?", for each mosaic once each way round.
- Count: "How many forests are there?".

So who guesses presence and comparison from the question alone is right half the time. They are questions, never
captions, so no caption score sees their texts.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..utils.images import read_image
from .label_questions import scene_words
from .labels import SceneRecord
from .records import QuestionRecord


# How EuroSAT's scenes are asked about: one of them, several of them. Others are "areas" by their name.
PLACES = {
    "AnnualCrop": ("an annual crop field", "annual crop fields"),
    "Forest": ("a forest", "forests"),
    "HerbaceousVegetation": ("an area of herbaceous vegetation", "areas of herbaceous vegetation"),
    "Highway": ("a highway", "highways"),
    "Industrial": ("an industrial area", "industrial areas"),
    "Pasture": ("a pasture", "pastures"),
    "PermanentCrop": ("a permanent crop field", "permanent crop fields"),
    "Residential": ("a residential area", "residential areas"),
    "River": ("a river", "rivers"),
    "SeaLake": ("a sea or lake", "seas or lakes"),
}


@dataclass(frozen=True)
class Mosaic:
    """Images of one dataset and split, row by row."""

    tiles: tuple[SceneRecord, ...]
    side: int  # images in a row

    def draw(self) -> Image.Image:
        """The mosaic; images of another size than the first are fitted to it.

        Raises:
            RSMoEError: an image cannot be read.
        """
        images = [read_image(tile.image) for tile in self.tiles]
        width, height = images[0].size
        whole = Image.new("RGB", (self.side * width, self.side * height))
        for place, image in enumerate(images):
            fitted = (
                image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
            )
            whole.paste(fitted, (place % self.side * width, place // self.side * height))
        return whole

    def questions(self, image: Path, scenes: Sequence[str], generator: random.Random) -> Iterator[QuestionRecord]:
        """What is asked about the mosaic.

        Args:
            image: of the mosaic.
            scenes: of the dataset, one at least that the mosaic does not show.
            generator: chooses which are asked about.
        """
        counts = Counter(tile.scene for tile in self.tiles)
        dataset, split = f"{self.tiles[0].dataset}-mosaics", self.tiles[0].split

        def asked(question: str, kind: str, answer: str) -> QuestionRecord:
            return QuestionRecord(image, dataset, split, question, kind, answer)

        there, not_there = sorted(counts), [scene for scene in scenes if scene not in counts]
        yes, no = generator.choice(there), generator.choice(not_there)
        yield asked(f"Is there {_places(yes)[0]}?", "presence", "yes")
        yield asked(f"Is there {_places(no)[0]}?", "presence", "no")
        more, fewer = generator.choice([(a, b) for a in there for b in (*there, no) if counts[a] > counts[b]])
        yield asked(f"Are there more {_places(more)[1]} than {_places(fewer)[1]}?", "comp", "yes")
        yield asked(f"Are there more {_places(fewer)[1]} than {_places(more)[1]}?", "comp", "no")
        counted = generator.choice(there)
        yield asked(f"How many {_places(counted)[1]} are there?", "count", str(counts[counted]))


def draw_mosaics(records: Sequence[SceneRecord], number: int, side: int, seed: int) -> list[Mosaic]:
    """Mosaics of one dataset and split, each of some of its scenes.

    Args:
        records: of two scenes at least.
        number: of mosaics.
        side: images in a row.
        seed: of the drawing.
    """
    by_scene: dict[str, list[SceneRecord]] = {}
    for record in records:
        by_scene.setdefault(record.scene, []).append(record)
    generator, mosaics = random.Random(f"{seed}/{records[0].dataset}/{records[0].split}"), []
    for _ in range(number):
        most = min(side * side, len(by_scene) - 1)  # one scene is not there, and can be asked about
        scenes = generator.sample(sorted(by_scene), generator.randint(1, most))
        of_tiles = [*scenes, *generator.choices(scenes, k=side * side - len(scenes))]
        generator.shuffle(of_tiles)
        mosaics.append(Mosaic(tuple(generator.choice(by_scene[scene]) for scene in of_tiles), side))
    return mosaics


def _places(scene: str) -> tuple[str, str]:
    words = scene_words(scene)
    article = "an" if words[:1] in "aeiou" else "a"
    return PLACES.get(scene, (f"{article} {words} area", f"{words} areas"))

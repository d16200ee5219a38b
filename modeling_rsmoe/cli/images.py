"""What `caption` and `ask` share about images: reading them before a model is loaded, describing them batch by batch.

Images are read first, because loading a model takes longer and bad input should cost no time.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors_rsmoe import RSMoEError
from .terminal import Result, Steps, count_of


if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Predictor


def check_images(images: list[str], batch_size: int, steps: Steps) -> "list[Image.Image] | None":
    """Read every image once, so that bad ones are known before the model is loaded.

    Returns:
        The images if they are one batch; else None (many do not fit into memory: they are read again, by batch).

    Raises:
        RSMoEError: with a line for each bad image.
    """
    if not images:
        return None
    from ..utils.quiet import quiet_libraries

    message = f"reading {count_of(len(images), 'image')}"
    steps(message, 0, len(images) if len(images) > 1 else None)
    kept, problems = [], []
    with quiet_libraries():
        from ..utils.images import read_image

        for index, name in enumerate(images):
            if len(images) > 1:
                steps(message, index, len(images))
            try:
                image = read_image(name)
            except RSMoEError as error:
                problems.append(str(error))
                continue
            if len(images) <= batch_size:
                kept.append(image)
    if problems:
        raise RSMoEError("\n".join(problems))
    return kept or None


def describe_images(
    images: list[str],
    kept: "list[Image.Image] | None",
    instruction: str,
    predictor: "Predictor",
    batch_size: int,
    steps: Steps,
) -> Iterator[Result]:
    """Results come batch by batch, in order.

    Args:
        images: files or URLs.
        kept: as of `check_images`.
        instruction: for every image.
        predictor: of the checkpoint.
        batch_size: images that are described together.
        steps: shows how far it is.
    """
    from ..utils.images import read_images
    from ..utils.quiet import quiet_libraries

    for start in range(0, len(images), batch_size):
        names = images[start : start + batch_size]
        steps(f"describing {count_of(len(images), 'image')}", start, len(images) if len(images) > len(names) else None)
        with quiet_libraries():
            pixels = kept or read_images(names)
            predictions = predictor.predict(pixels, instruction)
        for name, image, prediction in zip(names, pixels, predictions, strict=True):
            yield Result(name, prediction, image)

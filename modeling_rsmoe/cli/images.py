"""What `caption` and `ask` share: their inputs, read before a model is loaded and described batch by batch.

Inputs are read first, because loading a model takes longer and bad input should cost no time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import load
from ..scenes.result import SceneTask
from ..utils.quiet import quiet_libraries
from . import scenes, terminal
from .options import Dtype, Generation
from .terminal import Steps, count_of
from .views import Views


if TYPE_CHECKING:
    from PIL import Image


class Inputs:
    """Images and scenes, read and checked, with the checkpoint that describes them.

    Args:
        names: of images and scenes, as the user gave them.
        generation: options of the command, as its others.
        is_asked_again: keep what the image encoder made of them, for more than one question.
    """

    def __init__(
        self,
        names: list[str],
        generation: Generation,
        dtype: Dtype | None,
        scene_options: scenes.SceneOptions,
        views: Views,
        as_json: bool,
        steps: Steps,
        is_asked_again: bool = False,
    ):
        self._generation, self._scene_options, self._views = generation, scene_options, views
        self._as_json, self._steps = as_json, steps
        self._names, scene_names = scenes.split(names, scene_options)
        self._unopened: list[str] = []
        self._rasters = scenes.open_rasters(scene_names, scene_options, steps, self._unopened)
        views.expect(len(self._names), self._rasters, scene_options.sizes())
        self._kept = check_images(self._names, generation.batch_size, steps)
        self._checkpoint = load(generation.model, dtype, progress=steps)
        from ..inference import CachingPredictor, Predictor  # not at the top: they import torch

        predictor_class = CachingPredictor if is_asked_again else Predictor
        self._predictor = predictor_class(self._checkpoint.model, self._checkpoint.processor, generation.settings())
        self._revision = self._checkpoint.revision() if self._rasters else ""

    def describe(self, tasks: Sequence[SceneTask]) -> None:
        """Do all tasks, image by image and then scene by scene, and print and write what was found.

        Raises:
            RSMoEError: an instruction cannot be read, before anything is printed; no scene can be described.
            typer.Exit: some of the scenes cannot be described.
        """
        for task in tasks:
            self._predictor.check(task.instruction)
        self._describe_images(tasks)
        problems = list(self._unopened)
        for task in tasks if self._rasters else ():
            task = replace(task, model=self._checkpoint.name, revision=self._revision)
            size, options = self._generation.batch_size, self._scene_options
            left_out: list[str] = []
            how = (options, size, self._as_json, self._steps, left_out)
            results = scenes.describe(self._rasters, self._predictor, task, *how)
            problems += [problem for problem in left_out if problem not in problems]
            scenes.show(results, options.output, self._as_json, self._steps)
            self._views.add_scenes(results, self._steps)
        self._views.write(self._as_json, self._steps)
        scenes.report(problems, self._scene_options)

    def _describe_images(self, tasks: Sequence[SceneTask]) -> None:
        from ..utils.images import read_images

        pairs = [(place, task) for place in range(len(self._names)) for task in tasks]
        size = self._generation.batch_size
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            message = f"describing {count_of(len(self._names), 'image')}"
            self._steps(message, start, len(pairs) if len(pairs) > size else None)
            places = list(dict.fromkeys(place for place, _ in batch))
            with quiet_libraries():
                read = read_images([self._kept[place] if self._kept else self._names[place] for place in places])
                images = dict(zip(places, read, strict=True))
                instructions = [task.instruction for _, task in batch]
                predictions = self._predictor.predict([images[place] for place, _ in batch], instructions)
            for (place, task), prediction in zip(batch, predictions, strict=True):
                name, texts = self._names[place], task.texts(prediction.text)
                terminal.show(name, prediction, texts, self._checkpoint.name, self._as_json, self._steps)
                self._views.add_image(name, images[place], prediction, task.instruction, self._checkpoint.name)


def check_images(images: list[str], batch_size: int, steps: Steps) -> "list[Image.Image] | None":
    """Read every image once, so that bad ones are known before the model is loaded.

    Returns:
        The images if they are one batch; else None (many do not fit into memory: they are read again, by batch).
    """
    if not images:
        return None
    kept, problems = [], []
    with quiet_libraries():
        from ..utils.images import read_image

        for index, name in enumerate(images):
            steps(f"reading {count_of(len(images), 'image')}", index, len(images) if len(images) > 1 else None)
            try:
                kept.append(read_image(name))
                for note in kept[-1].info.get("notes", ()):
                    steps.note(note)
            except RSMoEError as error:
                problems.append(str(error))
            if len(images) > batch_size:
                kept.clear()
    if problems:
        raise RSMoEError("\n".join(problems))
    return kept or None

"""What `caption` and `ask` share: their inputs, read before a model is loaded and described batch by batch.

Inputs are read first, because loading a model takes longer and bad input should cost no time.
"""

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


def describe_inputs(
    inputs: list[str],
    task: SceneTask,
    generation: Generation,
    dtype: Dtype | None,
    scene_options: scenes.SceneOptions,
    views: Views,
    as_json: bool,
    steps: Steps,
) -> None:
    """Describe images and scenes, and print and write what was found; the task gets its checkpoint here."""
    names, scene_names = scenes.split(inputs, scene_options)
    problems: list[str] = []
    rasters = scenes.open_rasters(scene_names, scene_options, steps, problems)
    views.expect(len(names), rasters, scene_options.sizes())
    kept = check_images(names, generation.batch_size, steps)
    checkpoint = load(generation.model, dtype, progress=steps)
    from ..inference import Predictor  # not at the top: it imports torch
    from ..utils.images import read_images

    predictor = Predictor(checkpoint.model, checkpoint.processor, generation.settings())
    for start in range(0, len(names), generation.batch_size):
        batch = names[start : start + generation.batch_size]
        message, total = f"describing {count_of(len(names), 'image')}", len(names) if len(names) > len(batch) else None
        steps(message, start, total)
        with quiet_libraries():
            images = kept or read_images(batch)
            predictions = predictor.predict(images, task.instruction)
        for name, image, prediction in zip(batch, images, predictions, strict=True):
            texts = {} if task.question is None else {"question": task.question}
            texts[task.kind] = prediction.text
            terminal.show(name, prediction, texts, checkpoint.name, as_json, steps)
            views.add_image(name, image, prediction, task.instruction, checkpoint.name)
    if rasters:
        task = replace(task, model=checkpoint.name, revision=checkpoint.revision())
        batch_size = generation.batch_size
        results = scenes.describe(rasters, predictor, task, scene_options, batch_size, steps, problems)
        scenes.show(results, scene_options.output, as_json, steps)
        views.add_scenes(results, steps)
    views.write(as_json, steps)
    scenes.report(problems, scene_options)


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

"""Training: rows a second of the recipes against TRL's plain loop, on the same model and the same rows.

The plain loop is what a user of TRL writes: an SFTTrainer over images, prompts and completions with the same weights
learning, in the same precision. Ours is timed with one reference in a row, as the plain loop has it, and with the
references of the settings. The loops take turns; their first step is not counted.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from ..errors_rsmoe import RSMoEError
from ..training import Recipe, read_settings
from ..training.examples import ExampleCollator, TrainingData, read_data, training_examples
from ..training.features import FeatureCache
from ..training.modules import cast_base_lm, select_modules
from ..training.stages import load_start
from ..training.trainer import ExampleTrainer
from ..utils.files import cache_folder
from .names import OURS_SETTINGS, OURS_SINGLE, TRL
from .timing import Group, Tell, Times


ROWS = 8  # of a step
STEPS = 4  # of a loop in each turn, the first not counted


@dataclass(frozen=True)
class Course:
    """What is trained on.

    Attributes:
        config: YAML of settings; its stage1 is timed. features: folder of image features, by default the cache.
        changes: of the settings, as `rsmoe train` takes them.
    """

    checkpoint: Path
    config: Path
    data: Path
    changes: tuple[str, ...] = ()
    features: Path | None = None
    rows: int = ROWS
    steps: int = STEPS


def training(course: Course, repeats: int, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    """Seconds of a row in every loop, where they go, and the completions that a row holds."""
    if course.steps < 2:
        raise RSMoEError(f"{course.steps} step of each loop is too few: the first is not counted")
    with TemporaryDirectory() as folder:
        sizes = ["--max_steps", str(course.steps), "--per_device_train_batch_size", str(course.rows)]
        recipe, arguments = read_settings(course.config, "stage1", folder, [*course.changes, *sizes])
        arguments.save_strategy, arguments.eval_strategy = "no", "no"
        data = read_data(course.data.absolute(), recipe)
        single = replace(recipe, references_per_example=1)
        loops: dict[str, tuple[Callable[..., Any], Recipe]] = {
            TRL: (plain_trainer, single),
            OURS_SINGLE: (our_trainer, single),
            OURS_SETTINGS: (our_trainer, recipe),
        }
        times: dict[str, Times] = {name: {"first": 0.0, "wall": [], "cpu": []} for name in loops}
        shares: dict[str, Counter[str]] = {name: Counter() for name in loops}
        completions: dict[str, float] = dict.fromkeys(loops, 0.0)
        for turn in range(repeats):
            for index, (name, (make, of_loop)) in enumerate(loops.items()):
                tell(name, (turn * len(loops) + index) / (repeats * len(loops)))
                trainer, table, model = make(course, of_loop, arguments, data, arguments.seed + turn)
                steps = StepTimes(trainer, model)
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                cpu, wall = steps.seconds()
                times[name]["first"] = times[name]["first"] or steps.first / course.rows
                times[name]["wall"].append(wall / course.rows)
                times[name]["cpu"].append(cpu / course.rows)
                shares[name] += steps.shares()
                counted = table["completions"][course.rows :]
                completions[name] += sum(len(texts) for texts in counted) / len(counted) / repeats
    group: Group = {"key": "training", "title": "stage 1, seconds of a row", "base": TRL, "times": times}
    told = {name: {part: value / repeats for part, value in own.most_common()} for name, own in shares.items()}
    return [group], {"completions in a row": completions, "shares": told, "rows in a step": course.rows}


class StepTimes(TrainerCallback):
    """Processor time and time by the clock from each step's end to the next one's, and the processor time of its parts.

    Args:
        trainer: about to train.
        model: what it trains, without PEFT around it.
    """

    def __init__(self, trainer: Any, model: Any):
        self.began, self.first = 0.0, 0.0
        self.ends: list[tuple[float, float]] = []
        self.parts: Counter[str] = Counter()
        encoder, llm = model.model.encoder, model.model.language_model
        for name, module in (("ViT", encoder.vision_model), ("Q-Former", encoder.qformer), ("base LM", llm)):
            module.forward = self.timed(name, module.forward)
        trainer.data_collator = self.timed("images and texts to tensors", trainer.data_collator)
        trainer.accelerator.backward = self.timed("backward", trainer.accelerator.backward)
        trainer.add_callback(self)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[name] += time.process_time() - began  # type: ignore[assignment]  # seconds

        return run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.parts["optimizer"] += time.process_time() - self.began  # type: ignore[assignment]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append((time.process_time(), time.perf_counter()))
        if len(self.ends) == 1:
            self.first = self.ends[0][1] - self.first
            self.parts.clear()

    def seconds(self) -> tuple[float, float]:
        """Of a step but the first: processor time, and by the clock."""
        (first, first_clock), (last, last_clock) = self.ends[0], self.ends[-1]
        steps = len(self.ends) - 1
        return (last - first) / steps, (last_clock - first_clock) / steps

    def shares(self) -> Counter[str]:
        """Of the processor time, by part."""
        whole = self.ends[-1][0] - self.ends[0][0]
        parts = self.parts + Counter({"head and loss and the rest": whole - self.parts.total()})  # type: ignore[dict-item]
        return Counter({name: value / whole for name, value in parts.items()})  # type: ignore[misc]


def our_trainer(course: Course, recipe: Recipe, arguments: Any, data: TrainingData, seed: int) -> tuple[Any, Any, Any]:
    """The recipe's own: the trainer, its table of rows, and the model without PEFT around it."""
    model, processor = load_start(course.checkpoint, recipe)
    cache = FeatureCache(course.features or cache_folder() / "features", model.eval(), processor)
    table = training_examples(data, recipe, processor.expert_instructions, seed, course.rows, 1, arguments.max_steps)
    cache.add([Path(image) for image in table["image"]])
    selected = _prepared(model, recipe, arguments)
    trainer = ExampleTrainer(
        model=selected,
        args=arguments,
        recipe=recipe,
        train_dataset=table,
        processing_class=processor,
        data_collator=ExampleCollator(processor, cache),
    )
    return trainer, table, model


def plain_trainer(
    course: Course, recipe: Recipe, arguments: Any, data: TrainingData, seed: int
) -> tuple[Any, Any, Any]:
    """TRL's, over the same rows."""
    from datasets import Dataset, Image
    from trl import SFTConfig, SFTTrainer

    model, processor = load_start(course.checkpoint, recipe)
    processor.makes_expert_inputs = False
    table = training_examples(data, recipe, processor.expert_instructions, seed, course.rows, 1, arguments.max_steps)
    table = table.shuffle(seed=seed)  # ours are sorted by length
    examples = Dataset.from_list(
        [
            {
                "image": row["image"],
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completions"][0]}],
            }
            for row in table
        ]
    ).cast_column("image", Image())
    plain = SFTConfig(
        output_dir=arguments.output_dir,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=course.rows,
        learning_rate=arguments.learning_rate,
        bf16=arguments.bf16,
        use_cpu=arguments.use_cpu,
        max_length=None,
        activation_checkpointing=bool(arguments.activation_checkpointing),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    selected = _prepared(model, recipe, arguments)
    return SFTTrainer(model=selected, args=plain, train_dataset=examples, processing_class=processor), table, model


def _prepared(model: Any, recipe: Recipe, arguments: Any) -> Any:
    """The same weights learn in both loops, in the same precision."""
    selected = select_modules(model, recipe)
    if arguments.bf16:
        cast_base_lm(model)
    return selected

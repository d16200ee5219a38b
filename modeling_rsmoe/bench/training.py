"""Training: examples a second of the recipes against TRL's plain loop, on the same model and the same examples.

The plain loop is what a user of TRL writes: an SFTTrainer over images, prompts and completions with the same weights
learning, in the same precision. Ours is timed with one reference per example, as the plain loop has it, and with the
references of the settings. The loops run in rounds; their first step is not counted.
"""

import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
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
from .machine import machine_facts
from .names import ALL_REFERENCES, ONE_REFERENCE, TRL
from .timing import Group, Seconds, Times, now, phases_in_rounds
from .workbench import Workbench


ROUNDS = 3  # at most: the loops are long, and each loads the model anew
BATCH_SIZE = 8
STEPS = 4  # of a loop in each round, the first not counted
FIRST_STEP, STEP = "first step", "step"


def training(
    bench: Workbench, batch_size: int = BATCH_SIZE, steps: int = STEPS, features: Path | None = None
) -> tuple[list[Group], dict[str, Any]]:
    """Seconds of an example in every loop, where they go, and the completions that an example holds.

    The bench's data are learned by the stage1 of its config; `features` is the folder of cached image features.
    """
    if bench.data is None or bench.config is None:
        raise RSMoEError("the section training needs --data, a data folder, or leave it out by --only")
    if steps < 2:
        raise RSMoEError(f"{steps} step of each loop is too few: the first is not counted")
    # Half precision only pays where the processor multiplies it; a GPU does.
    multiplies_half = bench.model.device.type != "cpu" or "bf16" in " ".join(machine_facts("cpu")["features"])
    with TemporaryDirectory() as folder:
        changes = ["--max_steps", str(steps), "--per_device_train_batch_size", str(batch_size)]
        changes += [] if multiplies_half else ["--bf16", "false"]
        recipe, arguments = read_settings(bench.config, "stage1", folder, changes)
        arguments.save_strategy, arguments.eval_strategy = "no", "no"
        data = read_data(bench.data.absolute(), recipe)
        ours = partial(our_trainer, features or cache_folder() / "features")
        one_reference = replace(recipe, references_per_example=1)
        loops = {
            TRL: Loop(bench.folder, data, arguments, one_reference, plain_trainer),
            ONE_REFERENCE: Loop(bench.folder, data, arguments, one_reference, ours),
            ALL_REFERENCES: Loop(bench.folder, data, arguments, recipe, ours),
        }
        phases = phases_in_rounds(loops, min(bench.repeats, ROUNDS), bench.progress, warm=False)
    times: dict[str, Times] = {}
    for name, of_loop in phases.items():
        times[name] = {**of_loop[STEP], "first": of_loop[FIRST_STEP]["first"]}
    facts = {
        "completions per example": {name: statistics.mean(loop.completions) for name, loop in loops.items()},
        "shares": {name: loop.mean_shares() for name, loop in loops.items()},
        "examples in a step": batch_size,
    }
    return [{"key": "training", "title": "stage 1, seconds per example", "base": TRL, "times": times}], facts


@dataclass
class Loop:
    """A training that can be run again, each time with another seed."""

    checkpoint: Path  # folder of the model that it begins with
    data: TrainingData
    arguments: Any  # transformers' TrainingArguments
    recipe: Recipe
    make_trainer: Callable[["Loop", Any, Any, Any], Any]  # of the loop, model, processor and examples
    completions: list[float] = field(default_factory=list)  # per example, of each run
    shares: Counter[str] = field(default_factory=Counter)  # of processor time, summed over all runs

    def __call__(self) -> dict[str, Seconds]:
        """Seconds of an example in the first step, and in the others on average."""
        model, processor = load_start(self.checkpoint, self.recipe)
        size, seed = self.arguments.per_device_train_batch_size, self.arguments.seed + len(self.completions)
        sizes = (size, 1, self.arguments.max_steps)
        examples = training_examples(self.data, self.recipe, processor.expert_instructions, seed, *sizes)
        trainer = self.make_trainer(self, model, processor, examples)
        clock = StepTimes(trainer, model)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        began, first, *_, last = clock.ends
        total = float((last - first)[1])
        clock.spent["head and loss and the rest"] = total - clock.spent.total()  # type: ignore[assignment]
        self.shares.update({name: seconds / total for name, seconds in clock.spent.items()})  # type: ignore[arg-type]
        self.completions.append(statistics.mean(map(len, examples["completions"][size:])))
        return {FIRST_STEP: (first - began) / size, STEP: (last - first) / (len(clock.ends) - 2) / size}

    def trainable(self, model: Any) -> Any:
        """The model as the recipe trains it: in all loops the same weights learn, in the same precision."""
        selected = select_modules(model, self.recipe)
        if self.arguments.bf16:
            cast_base_lm(model)
        return selected

    def mean_shares(self) -> dict[str, float]:
        """Shares of processor time, the largest first."""
        return {name: share / len(self.completions) for name, share in self.shares.most_common()}


def our_trainer(features: Path, loop: Loop, model: Any, processor: Any, examples: Any) -> ExampleTrainer:
    """The recipe's trainer."""
    cache = FeatureCache(features, model.eval(), processor)
    cache.add([Path(image) for image in examples["image"]])
    return ExampleTrainer(
        model=loop.trainable(model),
        args=loop.arguments,
        recipe=loop.recipe,
        train_dataset=examples,
        processing_class=processor,
        data_collator=ExampleCollator(processor, cache),
    )


def plain_trainer(loop: Loop, model: Any, processor: Any, examples: Any) -> Any:
    """TRL's, over the same examples."""
    from datasets import Dataset, Image
    from trl import SFTConfig, SFTTrainer

    processor.makes_expert_inputs = False
    conversations = [
        {
            "image": example["image"],
            "prompt": [{"role": "user", "content": example["prompt"]}],
            "completion": [{"role": "assistant", "content": example["completions"][0]}],
        }
        for example in examples.shuffle(seed=loop.arguments.seed)  # ours are sorted by length
    ]
    names = ("output_dir", "max_steps", "per_device_train_batch_size", "learning_rate", "bf16", "use_cpu")
    arguments = SFTConfig(
        **{name: getattr(loop.arguments, name) for name in names},
        max_length=None,
        activation_checkpointing=bool(loop.arguments.activation_checkpointing),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=loop.trainable(model),
        args=arguments,
        train_dataset=Dataset.from_list(conversations).cast_column("image", Image()),
        processing_class=processor,
    )


class StepTimes(TrainerCallback):
    """The end of every step by both clocks, and the processor time of what all steps but the first consist of.

    Args:
        trainer: about to train.
        model: what it trains, without PEFT around it.
    """

    def __init__(self, trainer: Any, model: Any):
        self.ends: list[Seconds] = []  # the first is where training begins
        self.spent: Counter[str] = Counter()
        encoder, llm = model.model.encoder, model.model.language_model
        for name, module in (("ViT", encoder.vision_model), ("Q-Former", encoder.qformer), ("base LM", llm)):
            module.forward = self._timed(name, module.forward)
        trainer.data_collator = self._timed("images and texts to tensors", trainer.data_collator)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)
        trainer.add_callback(self)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] += time.process_time() - began  # type: ignore[assignment]  # a counter of seconds

        return run

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].step = self._timed("optimizer", kwargs["optimizer"].step)
        self.ends.append(now())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(now())
        if len(self.ends) == 2:
            self.spent.clear()

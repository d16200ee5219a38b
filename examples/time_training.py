"""How much faster the recipes train than TRL's plain loop, on the same model and the same rows, in one run.

    python examples/time_training.py CHECKPOINT --config hub_configs/rs-moe-nano/training.yaml --data DATA [--steps 8]

The plain loop is what a user of TRL writes: an SFTTrainer over images, prompts and completions with the same weights
learning, in the same precision. Ours is timed with one reference in a row, as the plain loop has it, and with the
references of the settings. The loops take turns; their first step is not counted. Prints rows and completions a second,
and where each loop's processor time goes. Ratios are of processor time: unlike the clock's they say the same on a busy
machine. Settings may follow as options, such as --bf16 false.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, Image
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from modeling_rsmoe.data.files import cache_folder
from modeling_rsmoe.training import Recipe, read_settings
from modeling_rsmoe.training.features import FeatureCache
from modeling_rsmoe.training.parts import halve_llm, select_parts
from modeling_rsmoe.training.rows import RowCollator, TrainingData, read_data, training_rows
from modeling_rsmoe.training.stages import load_start
from modeling_rsmoe.training.trainer import RowTrainer


class StepTimes(TrainerCallback):
    """Processor time and time by the clock from each step's end to the next one's, and the processor time of its parts.

    Args:
        trainer: about to train.
        model: what it trains, without PEFT around it.
    """

    def __init__(self, trainer, model):
        self.ends: list[tuple[float, float]] = []
        self.parts: Counter[str] = Counter()
        encoder, llm = model.model.encoder, model.model.language_model
        for name, module in (("ViT", encoder.vision_model), ("Q-Former", encoder.qformer), ("LLM block", llm)):
            module.forward = self.timed(name, module.forward)
        trainer.data_collator = self.timed("images and texts to tensors", trainer.data_collator)
        trainer.accelerator.backward = self.timed("backward", trainer.accelerator.backward)
        trainer.add_callback(self)

    def timed(self, name, function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[name] += time.process_time() - began

        return run

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.began = time.process_time()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.parts["optimizer"] += time.process_time() - self.began

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.process_time(), time.perf_counter()))
        if len(self.ends) == 1:
            self.parts.clear()

    def seconds(self) -> tuple[float, float]:
        """Of a step but the first: processor time, and by the clock."""
        (first, first_clock), (last, last_clock) = self.ends[0], self.ends[-1]
        steps = len(self.ends) - 1
        return (last - first) / steps, (last_clock - first_clock) / steps

    def shares(self) -> str:
        """`backward 51 %, ...`, the largest first."""
        whole = self.ends[-1][0] - self.ends[0][0]
        parts = self.parts + Counter({"head and loss and the rest": whole - self.parts.total()})
        return ", ".join(f"{name} {100 * value / whole:.0f} %" for name, value in parts.most_common())


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="training.yaml; its stage1 is timed")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="folder of image features; by default the cache")
    parser.add_argument("--steps", type=int, default=8, help="of each loop in each turn, the first not counted")
    parser.add_argument("--turns", type=int, default=2)
    given, changes = parser.parse_known_args(argv)
    if given.steps < 2:
        parser.error(f"--steps is {given.steps}; give 2 or more, the first is not counted")
    with tempfile.TemporaryDirectory() as folder:
        recipe, arguments = read_settings(given.config, "stage1", folder, [*changes, "--max_steps", str(given.steps)])
        arguments.save_strategy, arguments.eval_strategy = "no", "no"
        single = replace(recipe, references_per_row=1)
        data = read_data(given.data.absolute(), recipe)
        loops = {"TRL": single, "ours, one reference": single, "ours": recipe}
        rows: dict[str, list[float]] = {name: [] for name in loops}
        completions: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(given.turns):
            for name, of_loop in loops.items():
                make = plain_trainer if name == "TRL" else our_trainer
                trainer, table, model = make(given, of_loop, arguments, data, arguments.seed + turn)
                times = StepTimes(trainer, model)
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                batch = arguments.per_device_train_batch_size
                seconds, by_clock = times.seconds()
                learned = sum(len(texts) for texts in table["completions"][batch:]) / (given.steps - 1)
                rows[name].append(batch / seconds)
                completions[name].append(learned / seconds)
                tqdm.write(
                    f"{name}: {batch / by_clock:.2f} rows/s by the clock; of processor time {rows[name][-1]:.2f} rows/s, "
                    f"{completions[name][-1]:.2f} completions/s: {times.shares()}"
                )
    ratios = {name: statistics.mean(completions[name]) / statistics.mean(completions["TRL"]) for name in loops}
    for name, ratio in ratios.items():
        row_ratio = statistics.mean(rows[name]) / statistics.mean(rows["TRL"])
        print(f"{name}: {row_ratio:.2f} x the rows, {ratio:.2f} x the completions of TRL's loop")
    return ratios


def our_trainer(given, recipe: Recipe, arguments, data: TrainingData, seed: int):
    model, processor = load_start(given.checkpoint, recipe)
    cache = FeatureCache(given.features or cache_folder() / "features", model.eval(), processor)
    batch = arguments.per_device_train_batch_size
    table = training_rows(data, recipe, processor.expert_instructions, seed, batch, 1, arguments.max_steps)
    cache.add([Path(image) for image in table["image"]])
    selected = prepared(model, recipe, arguments)
    collator = RowCollator(processor, cache)
    trainer = RowTrainer(
        model=selected,
        args=arguments,
        recipe=recipe,
        train_dataset=table,
        processing_class=processor,
        data_collator=collator,
    )
    return trainer, table, model


def plain_trainer(given, recipe: Recipe, arguments, data: TrainingData, seed: int):
    model, processor = load_start(given.checkpoint, recipe)
    processor.expert_inputs = False
    batch = arguments.per_device_train_batch_size
    table = training_rows(data, recipe, processor.expert_instructions, seed, batch, 1, arguments.max_steps)
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
        per_device_train_batch_size=batch,
        learning_rate=arguments.learning_rate,
        bf16=arguments.bf16,
        use_cpu=arguments.use_cpu,
        max_length=None,
        activation_checkpointing=bool(arguments.activation_checkpointing),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    selected = prepared(model, recipe, arguments)
    return SFTTrainer(model=selected, args=plain, train_dataset=examples, processing_class=processor), table, model


def prepared(model, recipe: Recipe, arguments):
    """The same weights learn in both loops, in the same precision."""
    selected = select_parts(model, recipe)
    if arguments.bf16:
        halve_llm(model)
    return selected


if __name__ == "__main__":
    main()

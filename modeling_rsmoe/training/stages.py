"""The two stages from a start checkpoint to a finished one [paper: what learns in which stage].

A training keeps its state in OUTPUT/.training; when it ends, OUTPUT is an ordinary checkpoint: the start's weights
with what was learned, LoRA merged. `training.json` beside it says how it came about, and that it is finished.
"""

import gc
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy

from .. import RSMoEForConditionalGeneration, RSMoEProcessor
from ..data.cleaning import clean_caption
from ..data.labels import read_objects
from ..data.records import CaptionRecord, QuestionRecord, records_sha256
from ..errors_rsmoe import RSMoEError
from ..evaluation.objects import object_labels
from ..hub.facts import has_learned, read_facts
from ..inference.loading import open_config, open_model, open_processor
from ..utils.files import cache_folder
from ..utils.progress import Progress, no_progress
from ..utils.provenance import folder_sha256, package_versions
from .alignment import AlignmentModel, AlignmentTrainer, CaptionPairs, select_queries, standardize_vision
from .checkpoints import load_parameters, save_tensors, train_to_the_end
from .examples import ExampleCollator, TrainingData, read_data, training_examples, val_examples
from .features import FeatureCache, similar_images
from .modules import cast_base_lm, initialize_adapters, module_of, select_modules, trained_experts, trained_parameters
from .outputs import (
    LEARNED,
    STATE,
    begin,
    decisive_arguments,
    examples_per_step,
    finish,
    finished_record,
    history,
    show,
    training_in,
)
from .reward import CaptionReward, RewardTrainer
from .settings import Recipe, Stage, TrainArguments
from .trainer import ExampleTrainer


STANDARD, ALIGNED = "standard.safetensors", "alignment.safetensors"  # outcomes of what comes before the examples


def train_stage(
    stage: Stage,
    recipe: Recipe,
    arguments: TrainArguments,
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    resume: bool = False,
    features: str | Path | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Train one stage and write the checkpoint.

    Stage 1 trains the vision-language encoder and the base LM; stage 2 trains router and experts, which begin at the
    base LM of stage 1 [paper].

    Args:
        stage: "stage1" or "stage2".
        recipe: what learns, and from which examples.
        arguments: of the trainer; `output_dir` is set here.
        data: a data folder; its train split is learned, its val split only measured.
        output: the folder of the new checkpoint, and of the training's state.
        checkpoint: the folder that is trained from; by default `recipe.model`. That of stage 2 must have a finished
            stage 1 behind it, by its records or because its experts have learned, unless `recipe.one_stage`.
        resume: go on from the last checkpoint of a training in `output`, or begin if there is none yet.
        features: folder of image features, by default in the cache.
        progress: what happens before the first step and after the last one.

    Returns:
        `output`.

    Raises:
        RSMoEError: unfitting settings or data, an image that is lost, a full disk. Checkpoints stay good.
    """
    start, output = _start_folder(stage, checkpoint or recipe.model), Path(output).absolute()
    before = history(start)
    if stage == "stage2" and not recipe.one_stage and not _has_stage1(start, before):
        raise RSMoEError(
            f"{start} has no finished stage 1 (neither its records nor its weights say so): give the output of `rsmoe "
            "train stage1`, or set one_stage to true for the one-stage ablation"
        )
    progress("reading the data")
    training = read_data(Path(data).absolute(), recipe)
    features = Path(features or cache_folder() / "features")
    job = _Job(stage, recipe, arguments, training, start, output, features, progress)
    arguments.output_dir = str(job.state)
    with training_in(output, arguments):
        _run(job, resume, before)
    return output


@dataclass
class _Job:
    """One training: its settings, and where things are."""

    stage: Stage
    recipe: Recipe
    arguments: TrainArguments
    data: TrainingData
    start: Path  # the checkpoint that is trained from
    output: Path
    features: Path
    progress: Progress

    @property
    def state(self) -> Path:
        return self.output / STATE

    @property
    def examples_per_step(self) -> int:
        return examples_per_step(self.arguments)


def _run(job: _Job, resume: bool, before: dict[str, Any] | None) -> None:
    """Begin or resume, learn, and write the outcome. Only the first process writes."""
    is_first = job.arguments.process_index == 0
    if is_first:
        job.progress("hashing the data")
        record = _record(job)
        begin(job.output, record, resume)
    began = time.monotonic()
    weights, log = _learn(job)
    if is_first:
        job.progress(f"writing {job.output}")
        gc.collect()  # the trainer's cycles hold a model
        _finish(job, weights, finished_record(record, log[-1]["step"], job.arguments, began, before))


# ---- the start


def load_start(start: Path, recipe: Recipe) -> tuple[RSMoEForConditionalGeneration, RSMoEProcessor]:
    """Model and processor of a checkpoint in float32, with the experts that the recipe keeps.

    Args:
        start: the checkpoint's folder.
        recipe: `expert_names` says which experts; a reranker is left out where the recipe changes the ViT.

    Raises:
        RSMoEError: an expert that the checkpoint does not have, its weights are quantised, or as of `open_model`.
    """
    config = open_config(start)
    if recipe.vision != "frozen" or recipe.standardize_vision:
        config.reranker_rank, config.reranker_objects = 0, {}  # a reranker belongs to the ViT that it was fitted to
    config.confidence_weights = {}  # how sure the texts of before were
    if getattr(config, "quantization_config", None) is not None:
        raise RSMoEError(f"the weights of {start} are quantised; give --model with one of float weights")
    processor = open_processor(start)
    if recipe.expert_names is not None:
        unknown = [name for name in recipe.expert_names if name not in config.expert_names]
        if unknown or not recipe.expert_names:
            raise RSMoEError(f"expert_names is {recipe.expert_names}; {start} has {', '.join(config.expert_names)}")
        ids = dict(zip(config.expert_names, config.expert_token_ids or ()))
        names = [name for name in config.expert_names if name in recipe.expert_names]
        config.expert_names, config.expert_token_ids = names, [ids[name] for name in names]
        processor.experts = names
    model = open_model(RSMoEForConditionalGeneration, start, config=config, dtype=torch.float32)
    return model, processor


def _start_folder(stage: Stage, folder: str | Path | None) -> Path:
    if folder is None:
        hint = "the output of stage 1" if stage == "stage2" else "an assembled checkpoint"
        raise RSMoEError(f"{stage} has no checkpoint to begin from; give --model with {hint}")
    if not (Path(folder) / "config.json").is_file():
        raise RSMoEError(f"{folder} is no checkpoint folder (it has no config.json); give one with --model")
    return Path(folder).absolute()


def _has_stage1(start: Path, record: dict[str, Any] | None) -> bool:
    """By training.json; without it by what config.json keeps, or because router and experts have learned."""
    if record is None:
        return any(step.name == "stage 1" for step in read_facts(start).steps) or has_learned(start)
    while record and not (record.get("stage") == "stage1" and record.get("finished")):
        record = record.get("before")
    return record is not None


def _record(job: _Job) -> dict[str, Any]:
    """What decides a training's outcome, as JSON values."""
    data = job.data
    records: list[CaptionRecord | QuestionRecord] = [*data.captions, *data.questions]
    extra = [replace(example, image=example.image.relative_to(data.folder)) for example in data.extra]
    record = {
        "format": 1,
        "stage": job.stage,
        "finished": False,
        "recipe": asdict(job.recipe),
        "arguments": decisive_arguments(job.arguments),
        "data": {
            "sha256": records_sha256(records, data.folder),
            "datasets": list(dict.fromkeys(record.dataset for record in records)),
            "captioned_images": len(data.captions),
            "questions": len(data.questions),
            "extra_examples": len(data.extra),
            "extra_examples_sha256": hashlib.sha256(repr(extra).encode()).hexdigest(),
        },
        "start": {"name": job.start.name, "sha256": folder_sha256(job.start)},
        "versions": package_versions(),
    }
    return json.loads(json.dumps(record))


# ---- the training


def _learn(job: _Job) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train to the end from wherever this training is: what was learned, by name, and the log."""
    model, processor = load_start(job.start, job.recipe)
    cast(Any, model).to(job.arguments.device)
    cache = _prepare_encoder(job, model, processor) if job.recipe.vision == "frozen" else None
    trainer = _example_trainer(job, model, processor, cache)
    show(job.output, trainer, job.stage, job.examples_per_step)
    job.progress("training")
    train_to_the_end(trainer)
    learned: Any = trained_parameters(cast(Any, trainer.model))
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # every process gives its shards
        gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        learned = {name: value for name, value in gathered.items() if name in learned}
    return {name: value.detach().cpu() for name, value in learned.items()}, trainer.state.log_history


def _prepare_encoder(job: _Job, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor) -> FeatureCache:
    """What comes before the examples, each once: the ViT's last norm, features of the images, alignment."""
    recipe = job.recipe
    model.eval()
    if recipe.standardize_vision:
        measure = partial(standardize_vision, model, processor, job.data.images, job.arguments.seed, job.progress)
        _once(job, model, STANDARD, measure)
    cache = FeatureCache(job.features, model, processor)
    if recipe.alignment_steps or (recipe.rewrite_share and recipe.similar_images):
        cache.add(job.data.images, job.progress)
    if recipe.alignment_steps:
        _once(job, model, ALIGNED, partial(_align, job, model, processor, cache))
    return cache


def _once(job: _Job, model: RSMoEForConditionalGeneration, name: str, change: Callable[[], None]) -> None:
    """Change the model's encoder, or take the outcome from the file `name` if that was done before."""
    file = job.state / name
    if file.is_file():
        load_parameters(model, file)
        return
    before = {path: value.clone() for path, value in model.model.encoder.named_parameters()}
    change()
    if job.arguments.process_index == 0:
        after = dict(model.model.encoder.named_parameters())
        changed = {path: value for path, value in after.items() if not torch.equal(value, before[path])}
        save_tensors({f"model.encoder.{path}": value for path, value in changed.items()}, file)


def _align(job: _Job, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, cache: FeatureCache) -> None:
    """Align the Q-Former with the captions."""
    recipe, arguments = job.recipe, job.arguments
    pairs = CaptionPairs(model, processor, job.data.captions, cache, job.state / "captions.safetensors", job.progress)
    set_seed(arguments.seed)
    aligned = AlignmentModel(model.model.encoder, len(pairs.words)).to(arguments.device)
    select_queries(model, recipe)
    # bf16, since accelerate knows one precision in a process; alignment itself is in float32.
    same = ("logging_steps", "save_steps", "weight_decay", "seed", "bf16", "use_cpu")
    alignment_arguments = TrainArguments(
        output_dir=str(job.state / "alignment"),
        max_steps=recipe.alignment_steps,
        per_device_train_batch_size=recipe.alignment_batch_size,
        warmup_steps=recipe.alignment_warmup_steps,
        **{name: getattr(arguments, name) for name in same},
    )
    images_per_step = recipe.alignment_batch_size * arguments.world_size
    trainer = AlignmentTrainer(
        model=aligned,
        args=alignment_arguments,
        recipe=recipe,
        train_dataset=cast(Any, pairs.examples(recipe.alignment_steps * images_per_step, arguments.seed)),
        data_collator=pairs.collate,
    )
    show(job.output, trainer, "alignment", images_per_step, "alignment.png")
    train_to_the_end(trainer)
    model.requires_grad_(False)


def _example_trainer(
    job: _Job, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, cache: FeatureCache | None
) -> ExampleTrainer:
    """The trainer over all examples; the arguments get its steps."""
    recipe, arguments = job.recipe, job.arguments
    set_seed(arguments.seed)
    if recipe.attn_implementation is not None:
        cast(Any, model).set_attn_implementation({"text_config": recipe.attn_implementation})
    initialize_adapters(model, recipe)
    selected = select_modules(model, recipe)
    if arguments.bf16:
        cast_base_lm(model)
    only_adapters = all(module_of(name) in ("router", "experts") for name in trained_parameters(model))
    arguments.ddp_find_unused_parameters = not only_adapters  # all adapters are always in the graph
    if cache is not None and recipe.rewrite_share and recipe.similar_images:
        job.progress("comparing images")
        records = {record.image: record for record in job.data.captions}
        for image, others in similar_images(cache, list(records), recipe.similar_images).items():
            job.data.similar[image] = [records[other] for other in others]
    job.progress("writing the examples")
    names = list(model.model.experts) if recipe.router == "train" else trained_experts(model, recipe)
    instructions = {name: processor.expert_instructions[name] for name in names}
    batch, length = job.examples_per_step, (arguments.num_train_epochs, arguments.max_steps)
    train, val = training_examples(job.data, recipe, instructions, arguments.seed, batch, *length), None
    arguments.max_steps = len(train) // batch
    if recipe.eval_examples:
        arguments.eval_strategy = IntervalStrategy.STEPS
        arguments.eval_steps = arguments.eval_steps or arguments.save_steps
        held_out = read_data(job.data.folder, recipe, "val")
        val = val_examples(held_out, recipe, instructions, arguments.seed, arguments.per_device_eval_batch_size)
    if cache is not None:
        cache.add([Path(image) for table in (train, val) if table for image in table["image"]], job.progress)
    trainer: Callable[..., ExampleTrainer] = ExampleTrainer
    if recipe.caption_loss == "reward":
        labels = object_labels(read_objects(job.data.folder, "train"))
        references = {item.image: [clean_caption(text) for text in item.captions] for item in job.data.captions}
        trainer = partial(RewardTrainer, reward=CaptionReward(references.values(), labels, recipe.object_penalty))
    return trainer(
        model=selected,
        args=arguments,
        recipe=recipe,
        train_dataset=train,
        eval_dataset=val,
        processing_class=processor,
        data_collator=ExampleCollator(processor, cache),
    )


# ---- the end


def _finish(job: _Job, weights: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write the checkpoint: the start's weights in full precision, of alignment, and learned ones, merged."""
    model, processor = load_start(job.start, job.recipe)
    for name in (STANDARD, ALIGNED):
        if (job.state / name).is_file():
            load_parameters(model, job.state / name)
    selected: Any = select_modules(model, job.recipe)
    save_tensors(weights, job.state / LEARNED)
    load_parameters(selected, job.state / LEARNED)
    merged: Any = model if selected is model else selected.merge_and_unload()
    finish(job.output, job.start, merged, processor, record, job.arguments)

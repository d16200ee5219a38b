"""The two stages from a start checkpoint to a finished one [paper: what learns in which stage].

A training keeps its state in OUTPUT/.training; when it ends, OUTPUT is an ordinary checkpoint: the start's weights
with what was learned, LoRA merged. `training.json` beside it says how it came about, and that it is finished.
"""

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from .. import RSMoEConfig, RSMoEForConditionalGeneration, RSMoEProcessor
from ..data.provenance import TRAINING_RECORD as RECORD
from ..data.provenance import folder_sha256, package_versions, records_sha256
from ..errors_rsmoe import RSMoEError
from ..utils.files import cache_folder, write_whole
from .checkpoints import last_checkpoint, load_parameters, save_tensors
from .features import FeatureCache, Progress, similar_images
from .logs import LossPicture, RowBar, tensorboard
from .parts import halve_llm, part_of, select_parts, start_readers, trained_experts, trained_parameters
from .rows import RowCollator, TrainingData, read_data, training_rows, val_rows
from .settings import Recipe, Stage, TrainArguments
from .trainer import RowTrainer


STATE = ".training"
STANDARD, ALIGNED = "standard.safetensors", "align.safetensors"  # outcomes of what comes before rows
LEARNED = "learned.safetensors"  # what the rows changed
# Arguments that change what is learned: a run is resumed with the same.
DECISIVE = ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1"]
DECISIVE += ["adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "bf16", "max_steps", "num_train_epochs"]


def train_stage1(
    recipe: Recipe,
    arguments: TrainArguments,
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    resume: bool = False,
    features: str | Path | None = None,
    progress: Progress = lambda message, share: None,
) -> Path:
    """Train the vision-language encoder and the base LM [paper], and write the checkpoint.

    Args:
        recipe, arguments: the settings; `arguments.output_dir` is set here.
        data: a data folder; its train split is learned, its val split only measured.
        output: the folder of the new checkpoint, and of the training's state.
        checkpoint: the folder that is trained from; by default `recipe.checkpoint`.
        resume: go on from the last checkpoint of a training in `output`, or begin if there is none yet.
        features: folder of image features, by default in the cache.
        progress: told what happens before the first step.

    Returns:
        `output`.

    Raises:
        RSMoEError: unfitting settings or data, an image that is lost, a full disk. Checkpoints stay good.
    """
    return _train("stage1", recipe, arguments, data, output, checkpoint, resume, features, progress)


def train_stage2(
    recipe: Recipe,
    arguments: TrainArguments,
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    resume: bool = False,
    features: str | Path | None = None,
    progress: Progress = lambda message, share: None,
) -> Path:
    """Train router and experts, which begin at the base LM of stage 1 [paper], and write the checkpoint.

    Arguments and errors as of `train_stage1`; `checkpoint` must have a finished stage 1 behind it, unless
    `recipe.one_stage`.
    """
    return _train("stage2", recipe, arguments, data, output, checkpoint, resume, features, progress)


@dataclass
class _Job:
    """One training: what it was told, and where things are."""

    stage: Stage
    recipe: Recipe
    arguments: TrainArguments
    data: TrainingData
    start: Path  # the checkpoint that is trained from
    output: Path
    features: Path | None
    progress: Progress

    @property
    def state(self) -> Path:
        return self.output / STATE

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.arguments.process_index == 0

    @property
    def rows_per_step(self) -> int:
        arguments = self.arguments
        return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def _train(
    stage: Stage,
    recipe: Recipe,
    arguments: TrainArguments,
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path | None,
    resume: bool,
    features: str | Path | None,
    progress: Progress,
) -> Path:
    start, output = _start_folder(stage, recipe, checkpoint), Path(output).absolute()
    before = history(start)
    if stage == "stage2" and not recipe.one_stage and not _has_stage1(before):
        raise RSMoEError(
            f"{start} has no finished stage 1 ({RECORD} does not say so): give the output of `rsmoe train stage1`, or set "
            "one_stage to true for the one-stage ablation"
        )
    progress("reading the data", None)
    training = read_data(Path(data).absolute(), recipe)
    folder = None if features is None else Path(features)
    job = _Job(stage, recipe, arguments, training, start, output, folder, progress)
    arguments.output_dir = str(job.state)
    record: dict[str, Any] = {}
    if job.is_first:
        progress("hashing the data", None)
        record = _record(job)
        _begin(job, record, resume)
    try:
        begun = time.time()
        weights, log = _learn(job)
        if job.is_first:
            progress(f"writing {output}", None)
            gc.collect()  # the trainer's cycles hold a model
            steps = log[-1]["step"]
            record |= {"steps": steps, "rows": steps * job.rows_per_step, "finished": True}
            record |= {"seconds_of_last_sitting": round(time.time() - begun, 1), "before": before}
            _finish(job, weights, record)
    except (OSError, SafetensorError) as error:
        raise RSMoEError(
            f"the training in {output} stopped: {error}. Its last checkpoint is intact: free some space or put the file "
            "back, then go on with --resume"
        ) from error
    return output


# ---- the start


def load_start(start: Path, recipe: Recipe) -> tuple[RSMoEForConditionalGeneration, RSMoEProcessor]:
    """Model and processor of a checkpoint in float32, with the experts that the recipe keeps.

    Raises:
        RSMoEError: an expert that the checkpoint does not have, or its weights are quantised.
    """
    config = RSMoEConfig.from_pretrained(start)
    if recipe.vision != "frozen" or recipe.standardize_vision:
        config.reranker_rank = 0  # a reranker belongs to the ViT that it was fitted to
    if getattr(config, "quantization_config", None) is not None:
        raise RSMoEError(f"the weights of {start} are quantised; give --checkpoint with one of float weights")
    processor = RSMoEProcessor.from_pretrained(start)
    if recipe.expert_names is not None:
        unknown = [name for name in recipe.expert_names if name not in config.expert_names]
        if unknown or not recipe.expert_names:
            raise RSMoEError(f"expert_names is {recipe.expert_names}; {start} has {', '.join(config.expert_names)}")
        ids = dict(zip(config.expert_names, config.expert_token_ids or ()))
        kept = [name for name in config.expert_names if name in recipe.expert_names]
        config.expert_names, config.expert_token_ids = kept, [ids[name] for name in kept]
        processor.experts = kept
    model = RSMoEForConditionalGeneration.from_pretrained(start, config=config, dtype=torch.float32)
    return model, processor


def _start_folder(stage: Stage, recipe: Recipe, checkpoint: str | Path | None) -> Path:
    given = checkpoint or recipe.checkpoint
    if given is None:
        hint = "the output of stage 1" if stage == "stage2" else "an assembled checkpoint"
        raise RSMoEError(f"{stage} has no checkpoint to begin from; give --checkpoint with {hint}")
    if not (Path(given) / "config.json").is_file():
        raise RSMoEError(f"{given} is no checkpoint folder (it has no config.json); give one with --checkpoint")
    return Path(given).absolute()


def history(start: Path) -> dict[str, Any] | None:
    """The training.json of a checkpoint, or None."""
    try:
        found = json.loads((start / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RSMoEError(f"{start / RECORD} cannot be read ({error}); restore it or train stage 1 again") from error
    return found if isinstance(found, dict) else None


def _has_stage1(record: dict[str, Any] | None) -> bool:
    while isinstance(record, dict):
        if record.get("stage") == "stage1" and record.get("finished"):
            return True
        record = record.get("before")
    return False


def _record(job: _Job) -> dict[str, Any]:
    """What decides a training's outcome, as JSON values."""
    data, every = job.data, job.arguments.to_dict()
    records: list[Any] = [*data.captions, *data.questions]
    extra = [replace(row, image=row.image.relative_to(data.folder)) for row in data.extra]
    record = {
        "format": 1,
        "stage": job.stage,
        "finished": False,
        "recipe": asdict(job.recipe),
        "arguments": {name: every[name] for name in DECISIVE} | {"rows_per_step": job.rows_per_step},
        "data": {
            "sha256": records_sha256(records, data.folder),
            "captioned_images": len(data.captions),
            "questions": len(data.questions),
            "extra_rows": len(data.extra),
            "extra_rows_sha256": hashlib.sha256(repr(extra).encode()).hexdigest(),
        },
        "start": {"name": job.start.name, "sha256": folder_sha256(job.start)},
        "versions": package_versions(),
    }
    return json.loads(json.dumps(record))


def _begin(job: _Job, record: dict[str, Any], resume: bool) -> None:
    """Enter a new training into its folder, or see that the one there is the same.

    Raises:
        RSMoEError: a training is there already, or another one than what is to be resumed.
    """
    output, file = job.output, job.state / RECORD
    if (output / RECORD).is_file():
        raise RSMoEError(f"{output} holds a finished training; give another --output")
    if not file.is_file():
        if (output / "config.json").is_file():
            raise RSMoEError(f"{output} holds a checkpoint that was not begun here; give another --output")
        try:
            write_whole(file, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise RSMoEError(
                f"{output} cannot be written ({error}); free some space or give another --output"
            ) from error
        return
    if not resume:
        raise RSMoEError(f"{output} holds a training that was begun; add --resume, or give another --output")
    old = json.loads(file.read_text(encoding="utf-8"))
    changed = _differences({**old, "versions": None}, {**record, "versions": None})
    if changed:
        raise RSMoEError(
            f"{output} was begun with other settings or data ({'; '.join(changed)}); resume with the same, or give "
            "another --output"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """`name was ..., is ...` for each value that differs."""
    found = []
    for name in {**old, **new}:
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{path}{name}.")
        elif before != now:
            found.append(f"{path}{name} was {before}, is {now}")
    return found


# ---- the training


def _learn(job: _Job) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train to the end from wherever this training is: what was learned, by name, and the log."""
    model, processor = load_start(job.start, job.recipe)
    cast(Any, model).to(job.arguments.device)
    cache = _prepare_encoder(job, model, processor) if job.recipe.vision == "frozen" else None
    trainer = _row_trainer(job, model, processor, cache)
    _show(trainer, job.stage, job.rows_per_step, job.output / "loss.png", job.output / "tensorboard" / job.stage)
    job.progress("training", None)
    _to_the_end(trainer, job.state)
    learned = trained_parameters(cast(Any, trainer.model))
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # every process gives its shards
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return {name: value.cpu() for name, value in whole.items() if name in learned}, trainer.state.log_history
    return {name: value.detach().cpu() for name, value in learned.items()}, trainer.state.log_history


def _prepare_encoder(job: _Job, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor) -> FeatureCache:
    """What comes before rows, each once: the ViT's last norm, features of the images, the Q-Former's warm-up."""
    from .alignment import standardize_vision

    model.eval()
    if job.recipe.standardize_vision:
        measure = partial(standardize_vision, model, processor, job.data.images, job.arguments.seed, job.progress)
        _once(job, model, STANDARD, measure)
    cache = FeatureCache(job.features or cache_folder() / "features", model, processor)
    if job.recipe.align_steps or _looks_for_similar(job.recipe):
        cache.add(job.data.images, job.progress)
    if job.recipe.align_steps:
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
    if job.is_first:
        after = dict(model.model.encoder.named_parameters())
        changed = {path: value for path, value in after.items() if not torch.equal(value, before[path])}
        save_tensors({f"model.encoder.{path}": value for path, value in changed.items()}, file)


def _align(job: _Job, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, cache: FeatureCache) -> None:
    """Warm the Q-Former up."""
    from .alignment import CaptionPairs, QueryWarmup, WarmupTrainer, select_queries

    recipe, arguments = job.recipe, job.arguments
    pairs = CaptionPairs(model, processor, job.data.captions, cache, job.state / "captions.safetensors", job.progress)
    set_seed(arguments.seed)
    warmup = QueryWarmup(model.model.encoder, len(pairs.words)).to(arguments.device)
    select_queries(model, recipe)
    own = TrainArguments(
        output_dir=str(job.state / "align"),
        max_steps=recipe.align_steps,
        per_device_train_batch_size=recipe.align_batch_size,
        warmup_steps=recipe.align_warmup_steps,
        logging_steps=arguments.logging_steps,
        save_steps=arguments.save_steps,
        weight_decay=arguments.weight_decay,
        seed=arguments.seed,
        bf16=arguments.bf16,  # accelerate knows one precision in a process; the warm-up itself is in float32
        use_cpu=arguments.use_cpu,
    )
    rows_per_step = recipe.align_batch_size * arguments.world_size
    examples: Any = pairs.examples(recipe.align_steps * rows_per_step, arguments.seed)
    trainer = WarmupTrainer(model=warmup, args=own, recipe=recipe, train_dataset=examples, data_collator=pairs.collate)
    _show(trainer, "align", rows_per_step, job.output / "align.png", job.output / "tensorboard" / "align")
    _to_the_end(trainer, job.state / "align")
    model.requires_grad_(False)


def _to_the_end(trainer: Any, state: Path) -> None:
    """Train from the last checkpoint in `state`, if there is one.

    Raises:
        RSMoEError: what broke, such as an image that was lost, and that the rest can be had.
    """
    last = last_checkpoint(state)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except RSMoEError as error:
        kept = last_checkpoint(state)
        raise RSMoEError(
            f"the training stopped: {error}. {kept or 'Its start'} is intact: with that mended, go on with --resume"
        ) from error


def _row_trainer(
    job: _Job, model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, cache: FeatureCache | None
) -> RowTrainer:
    recipe, arguments = job.recipe, job.arguments
    set_seed(arguments.seed)
    if recipe.attn_implementation is not None:
        cast(Any, model).set_attn_implementation({"text_config": recipe.attn_implementation})
    start_readers(model, recipe)
    selected = select_parts(model, recipe)
    if arguments.bf16:
        halve_llm(model)
    only_readers = all(part_of(name) in ("router", "experts") for name in trained_parameters(model))
    arguments.ddp_find_unused_parameters = not only_readers  # all readers are always in the graph
    if cache is not None and _looks_for_similar(recipe):
        job.progress("looking for similar images", None)
        records = {record.image: record for record in job.data.captions}
        found = similar_images(cache, list(records), recipe.similar_images)
        job.data.similar.update({image: [records[other] for other in others] for image, others in found.items()})
    job.progress("writing the rows", None)
    names = list(model.model.experts) if recipe.router == "train" else trained_experts(model, recipe)
    instructions = {name: processor.expert_instructions[name] for name in names}
    epochs, steps = arguments.num_train_epochs, arguments.max_steps
    table = training_rows(job.data, recipe, instructions, arguments.seed, job.rows_per_step, epochs, steps)
    arguments.max_steps = len(table) // job.rows_per_step
    val = None
    if recipe.eval_rows:
        held_out = read_data(job.data.folder, recipe, "val")
        val = val_rows(held_out, recipe, instructions, arguments.seed, arguments.per_device_eval_batch_size)
        arguments.eval_strategy = IntervalStrategy.STEPS
        arguments.eval_steps = arguments.eval_steps or arguments.save_steps
    if cache is not None:
        cache.add([Path(image) for rows in (table, val) if rows for image in rows["image"]], job.progress)
    return RowTrainer(
        model=selected,
        args=arguments,
        recipe=recipe,
        train_dataset=table,
        eval_dataset=val,
        processing_class=processor,
        data_collator=RowCollator(processor, cache),
    )


def _looks_for_similar(recipe: Recipe) -> bool:
    return bool(recipe.rewrite_share and recipe.similar_images)


def _show(trainer: Any, name: str, rows_per_step: int, picture: Path, events: Path) -> None:
    trainer.remove_callback(PrinterCallback)
    for callback in (RowBar(name, rows_per_step), LossPicture(picture), tensorboard(events)):
        trainer.add_callback(callback)


# ---- the end


def _finish(job: _Job, weights: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write the checkpoint: the start's weights in full precision, the warm-up's, and what was learned, merged."""
    output, learned = job.output, job.state / LEARNED
    model, processor = load_start(job.start, job.recipe)
    for name in (STANDARD, ALIGNED):
        if (job.state / name).is_file():
            load_parameters(model, job.state / name)
    selected: Any = select_parts(model, job.recipe)
    save_tensors(weights, learned)
    load_parameters(selected, learned)
    whole: Any = model if selected is model else selected.merge_and_unload()
    part = job.state / "finished.part"
    shutil.rmtree(part, ignore_errors=True)
    dtype = RSMoEConfig.from_pretrained(job.start).dtype or torch.float32
    # Names as the model has them: saved under DINOv2's old names, a plain load_state_dict would miss them.
    whole.to(dtype).save_pretrained(part, save_original_format=False)
    processor.save_pretrained(part)
    last = last_checkpoint(job.state)
    if last is not None:
        shutil.copyfile(last / TRAINER_STATE_NAME, part / TRAINER_STATE_NAME)
    write_whole(part / "training_args.json", json.dumps(job.arguments.to_dict(), indent=2, default=str) + "\n")
    for new in part.iterdir():
        old = output / new.name
        if old.is_dir():
            shutil.rmtree(old)
        new.replace(old)
    part.rmdir()
    write_whole(output / RECORD, json.dumps(record, indent=2) + "\n")  # last: it says that all is there

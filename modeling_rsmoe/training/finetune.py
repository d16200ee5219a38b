"""Fine-tuning on one's own captions, from a trained checkpoint to a better one, without a setting to find.

`plan` looks at the captions, decides [our decision, all of it] and estimates the time; `fine_tune` runs both stages,
fits the reranker, scores and writes the card. The state lies in OUTPUT/.training, with the plan, so that the same
command goes on after a stop. When it ends, OUTPUT is an ordinary checkpoint with report, predictions and loss curves.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data.aspects import ASPECTS, aspect_texts
from ..data.cleaning import words
from ..data.lexicon import listed_mentions
from ..data.records import CAPTIONS_FILE, QUESTIONS_FILE, CaptionRecord, QuestionRecord, read_captions, read_questions
from ..data.splits import with_splits
from ..errors_rsmoe import RSMoEError
from ..evaluation import run
from ..evaluation.lookup import known_lookups, predictions_by_lookups
from ..evaluation.markdown import summary_table
from ..evaluation.report import Against, Report, read_report, write_report
from ..hub.card import CARD, write_card
from ..hub.facts import read_facts
from ..hub.folders import check_space
from ..inference.checkpoint import DEFAULT_MODEL, find_checkpoint
from ..inference.loading import open_config, safetensors_of
from ..utils.extras import require
from ..utils.files import disk_errors, only_writer, parse_json, write_whole
from ..utils.images import read_image
from ..utils.progress import Progress, no_progress
from ..utils.provenance import TRAINING_RECORD
from .memory import count_parameters, without_weights
from .outputs import STATE
from .reranker import MIN_IMAGES as RERANKER_IMAGES
from .reranker import train_reranker
from .settings import STAGES, Recipe, Stage, TrainArguments
from .stages import train_stage


PLAN, REPORT, PREDICTIONS, IMAGES = "plan.json", "report.json", "predictions.jsonl", "images"
SEED = 17

# The captions.
MIN_IMAGES = 10  # fewer are too few to learn from and to score on
TEST_SHARE = 0.2  # of images without splits are held out
MAX_TEST_IMAGES = 100  # of a dataset are scored
MIN_ASPECT_SHARE = 0.1  # of the images must have a sentence for an expert, or it is left out
MIN_ENGLISH_SHARE = 0.2  # of the captions must have a known noun or one of these words
ENGLISH = {"the", "are", "and", "with", "there", "this", "some", "many"}

# The length of both stages, the shorter of the two.
PASSES = {"stage1": 10, "stage2": 5}  # over the images
MAX_EXAMPLES = {"stage1": 9600, "stage2": 4800}  # a quarter of nano's own
SMALL = 500  # images up to which a step has 8 examples, not 16
MIN_STEPS = 10
RERANKER_RANK = 256

# The estimate, in products (multiplications with additions) of the base LM's weights.
PROMPT_TOKENS, LETTERS = 24, 4.5  # of an example; of a token
TRAINED_PRODUCTS = 2  # of each weight and token: forward, and backward to what learns
CAPTION_TOKENS = 500  # read at once, the work of one caption by the full model
SECONDS_A_PART = 20  # reading, hashing and writing weights


@dataclass(frozen=True)
class Plan:
    """What a fine-tuning does; a resumed one does the same."""

    checkpoint: str  # the folder that is trained from
    minutes: float | None  # that were asked for
    train_images: int
    test_images: int  # that are scored, of each dataset at most MAX_TEST_IMAGES
    test_split: str
    questions: int
    experts: list[str]
    steps: dict[str, int]  # of each stage
    examples_per_step: int
    bf16: bool
    fits_reranker: bool
    seconds: dict[str, float]  # that each part will take, about

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in self.seconds.items())
        left_out = [name for name in ASPECTS if name not in self.experts]
        experts = f"experts {', '.join(self.experts)}"
        experts += f" (too few captions speak of {' and '.join(left_out)})" if left_out else ""
        reranker = "a new reranker" if self.fits_reranker else "the reranker stays, for want of images"
        return (
            f"{self.train_images:,} images to learn from, {self.test_images:,} to score; {experts}; {reranker}\n"
            f"about {_minutes(sum(self.seconds.values()))} minutes: {parts}\n"
            "Ctrl-C stops it; the same command goes on"
        )


def plan(
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path = DEFAULT_MODEL,
    *,
    minutes: float | None = None,
    progress: Progress = no_progress,
) -> Plan:
    """Decide what to train and for how long, or read what was decided when the training in `output` began.

    Args:
        data: a data folder or ImageFolder with captions. Without splits a fifth of its images is held out.
        output: the folder of the new checkpoint.
        checkpoint: what is trained from, already trained itself: a folder or a name.
        minutes: how long it may take, about; by default as long as so many images need.
        progress: what happens.

    Raises:
        RSMoEError: captions that are missing, too few or not English, an image that cannot be read, an `output` that
            holds something else, too little time or space, pycocoevalcap is missing.
    """
    require("pycocoevalcap", "eval")
    data, output = Path(data).absolute(), Path(output).absolute()
    _check_output(data, output)
    progress("reading the data")
    captions, questions = own_records(data, progress)
    texts = _data_files(data, captions, questions)
    checkpoint, file = find_checkpoint(str(checkpoint), progress).absolute(), output / STATE / PLAN
    if file.is_file():
        return _same_plan(file, texts, str(checkpoint), minutes)
    check_space(3 * sum(weights.stat().st_size for weights in safetensors_of(checkpoint)), output)
    _check_images([record.image for record in captions], progress)
    progress("estimating the time")
    made = _decide(captions, questions, checkpoint, minutes)
    with disk_errors("cannot write", "Free some space or give another --output."):
        for name, text in texts.items():
            write_whole(output / STATE / "data" / name, text)
        if not (output / STATE / "data" / IMAGES).is_symlink():
            os.symlink(data, output / STATE / "data" / IMAGES, target_is_directory=True)
        write_whole(file, json.dumps(asdict(made), indent=2) + "\n")
    return made


def fine_tune(
    plan: Plan, output: str | Path, *, features: str | Path | None = None, progress: Progress = no_progress
) -> Report:
    """Do what was planned, or what is left of it, and write the checkpoint.

    Args:
        plan: of `plan`, which wrote it into `output`.
        output: the folder of the new checkpoint.
        features: folder of image features, by default in the cache.
        progress: what happens.

    Returns:
        The report of the full model on held-out images, beside the checkpoint that was trained from, the captions of
        the nearest training images, and the most frequent training caption.

    Raises:
        RSMoEError: as of `train_stage` and `train_reranker`.
    """
    output = Path(output).absolute()
    state = output / STATE
    data, start, checkpoint = state / "data", Path(plan.checkpoint), Path(plan.checkpoint)
    with only_writer(output), disk_errors("cannot write", "Free some space, then give the same command again."):
        for stage in STAGES:
            new = state / stage
            if not (new / TRAINING_RECORD).is_file():
                recipe, arguments = settings(plan, stage)
                options: dict[str, Any] = {"resume": True, "features": features, "progress": progress}
                train_stage(stage, recipe, arguments, data, new, checkpoint, **options)
            checkpoint = new
        if plan.fits_reranker:
            new = state / "reranker"
            if not (new / TRAINING_RECORD).is_file():
                rank = min(RERANKER_RANK, 3 * open_config(checkpoint).vision_config.hidden_size)
                train_reranker(data, new, checkpoint, rank=rank, features=features, progress=progress)
            checkpoint = new
        if not (state / REPORT).is_file():
            write_report(_evaluate(plan, data, start, checkpoint, output, features, progress), state / REPORT)
        report = read_report(state / REPORT)
        progress(f"writing {output}")
        _finish(report, checkpoint, output)
    return report


# ---- the captions


def own_records(data: Path, progress: Progress = no_progress) -> tuple[list[CaptionRecord], list[QuestionRecord]]:
    """Each captioned image once, in the split `train` or in the one that is scored, and the questions to learn.

    Where all records are of one split there are none yet, and a fifth of the images is held out, near
    duplicates together.

    Raises:
        RSMoEError: as of `read_captions`; splits without train, or with train alone; too few images; not English.
    """
    images: dict[Path, CaptionRecord] = {}
    for record in read_captions(data):
        known = images.setdefault(record.image, replace(record, captions=()))
        images[record.image] = replace(known, captions=known.captions + record.captions)
    captions = list(images.values())
    splits = {record.split for record in captions}
    test = next((name for name in ("test", "val") if name in splits), None)
    if len(splits) > 1 and (run.TRAIN not in splits or test is None):
        named = ", ".join(sorted(splits))
        raise RSMoEError(f"{data} has the splits {named}; it needs train and test (or val), or none: rename them")
    if len(captions) < MIN_IMAGES:
        raise RSMoEError(
            f"{len(captions)} captioned images are too few to learn from and to score; give {MIN_IMAGES} or more"
        )
    if len(splits) == 1:
        test = "test"
        captions = with_splits(captions, 0, TEST_SHARE, SEED, progress)
    captions = [record for record in captions if record.split in (run.TRAIN, test)]
    _check_english([caption for record in captions for caption in record.captions])
    if not (data / QUESTIONS_FILE).is_file():
        return captions, []
    known_splits = {record.image: record.split for record in captions}
    questions = [replace(one, split=known_splits.get(one.image, one.split)) for one in read_questions(data)]
    return captions, [question for question in questions if question.split == run.TRAIN]


def _check_english(captions: Sequence[str]) -> None:
    """The base LM writes English, and aspects are found by English words."""
    split = [words(caption) for caption in captions]
    english = [caption for caption in split if ENGLISH.intersection(caption) or listed_mentions(caption)]
    if len(english) < MIN_ENGLISH_SHARE * len(captions):
        raise RSMoEError(
            f"the captions do not look English (such as {captions[0]!r}): the experts' aspects are found by English "
            "words. Translate the captions"
        )


def _check_images(images: Sequence[Path], progress: Progress) -> None:
    problems = []
    for number, image in enumerate(images):
        progress("reading the images", number, len(images), "images")
        try:
            read_image(image)
        except RSMoEError as error:
            problems.append(str(error))
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise RSMoEError(
            f"{len(problems)} of {len(images)} images cannot be read; mend them or drop their lines: {shown}"
        )


def _check_output(data: Path, output: Path) -> None:
    if output.resolve().is_relative_to(data.resolve()):
        raise RSMoEError(f"{output} lies in the data folder {data}; give an --output outside")
    if (output / TRAINING_RECORD).is_file():
        raise RSMoEError(f"{output} holds a finished training; give another --output")
    begun = (output / STATE / PLAN).is_file()
    if not begun and output.exists() and (not output.is_dir() or {one.name for one in output.iterdir()} - {STATE}):
        raise RSMoEError(f"{output} exists, and no training on your captions was begun there; give another --output")


def _data_files(data: Path, captions: Sequence[CaptionRecord], questions: Sequence[QuestionRecord]) -> dict[str, str]:
    """The texts of a data folder in which `images` is a link to `data`."""
    texts = {}
    for name, records in ((CAPTIONS_FILE, captions), (QUESTIONS_FILE, questions)):
        lines = [{**vars(one), "image": f"{IMAGES}/{one.image.relative_to(data).as_posix()}"} for one in records]
        texts[name] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return {name: text for name, text in texts.items() if text}


# ---- the plan


def _decide(
    captions: Sequence[CaptionRecord], questions: Sequence[QuestionRecord], checkpoint: Path, minutes: float | None
) -> Plan:
    train = [record for record in captions if record.split == run.TRAIN]
    (test_split,) = {record.split for record in captions} - {run.TRAIN}
    sentences = [aspect_texts(record) for record in train]
    config = open_config(checkpoint)
    experts = [
        name
        for name in ASPECTS
        if name in config.expert_names
        and sum(bool(of_image[name]) for of_image in sentences) >= MIN_ASPECT_SHARE * len(train)
    ]
    batch = 8 if len(train) <= SMALL else 16
    steps = {
        stage: max(MIN_STEPS, min(passes * len(train), MAX_EXAMPLES[stage]) // batch)
        for stage, passes in PASSES.items()
    }
    bf16 = has_fast_bfloat16()
    datasets = {record.dataset for record in captions}
    tested = [sum((one.dataset, one.split) == (name, test_split) for one in captions) for name in datasets]
    made = Plan(
        checkpoint=str(checkpoint),
        minutes=minutes,
        train_images=len(train),
        test_images=sum(min(count, MAX_TEST_IMAGES) for count in tested),
        test_split=test_split,
        questions=len(questions),
        experts=experts,
        steps=steps,
        examples_per_step=batch,
        bf16=bf16,
        fits_reranker=len(train) >= RERANKER_IMAGES,
        seconds={},
    )
    letters = sum(len(caption) for record in train for caption in record.captions) / len(train)
    made = replace(made, seconds=_estimate(made, config, letters))
    return made if minutes is None else _shortened(made, minutes)


def _shortened(plan: Plan, minutes: float) -> Plan:
    """As many steps of both stages as there is time for."""
    training = {stage: plan.seconds[stage] - SECONDS_A_PART for stage in STAGES}
    total = sum(training.values())
    rest = sum(plan.seconds.values()) - total
    share = min(1.0, max(0.0, 60 * minutes - rest) / total)
    steps = {stage: int(share * count) for stage, count in plan.steps.items()}
    if min(steps.values()) < MIN_STEPS:
        least = rest + total * MIN_STEPS / min(plan.steps.values())
        raise RSMoEError(f"{minutes:g} minutes are too few for these images; give {math.ceil(least / 60)} or more")
    seconds = dict(plan.seconds)
    for stage in STAGES:
        seconds[stage] = SECONDS_A_PART + training[stage] * steps[stage] / plan.steps[stage]
    return replace(plan, steps=steps, seconds=seconds)


def settings(plan: Plan, stage: Stage) -> tuple[Recipe, TrainArguments]:
    """The settings of a stage. What the checkpoint knows stays: rates are lower than those it was trained with, and
    router and experts go on from where they are.

    Args:
        plan: of `plan`.
        stage: "stage1" or "stage2".
    """
    if stage == "stage1":
        answers = 0.25 if plan.questions else 0.0
        changes: dict[str, Any] = {"caption_share": 0.75, "rewrite_share": 0.25, "answer_share": answers}
        changes |= {"qformer": "queries", "qformer_learning_rate": 5e-5, "projection_learning_rate": 1e-4}
    else:
        changes = {"router_share": 0.3, "expert_share": 0.7, "question_share": 0.15 if plan.questions else 0.0}
        changes |= {"expert_start": "checkpoint"}
    recipe = Recipe.of(stage, expert_names=plan.experts, attn_implementation="eager", **changes)
    arguments = TrainArguments(
        output_dir=".",
        learning_rate=3e-4 if stage == "stage1" else 2e-4,
        max_steps=plan.steps[stage],
        per_device_train_batch_size=plan.examples_per_step,
        warmup_steps=0.1,
        logging_steps=5,
        save_steps=20,
        seed=SEED,
        bf16=plan.bf16,
    )
    return recipe, arguments


def has_fast_bfloat16() -> bool:
    """Whether this machine computes in bfloat16; a processor that does not takes several times as long as in
    float32."""
    if torch.accelerator.is_available():
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _estimate(plan: Plan, config: Any, letters: float) -> dict[str, float]:
    """Seconds of each part: its products of the base LM (the ViT's, of features), at the rate of one that is timed."""
    parameters = count_parameters(without_weights(config))
    rate = _products_per_second(config.text_config, plan.bf16)
    base_lm = parameters["language_model"] / rate
    images = plan.train_images + plan.test_images
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    tokens = {"stage1": letters / LETTERS, "stage2": letters / LETTERS / 2}
    seconds = {"features": images * patches * parameters["vision"] / rate}
    for stage in STAGES:
        of_example = config.num_query_tokens + PROMPT_TOKENS + tokens[stage]
        examples = plan.steps[stage] * plan.examples_per_step
        seconds[stage] = SECONDS_A_PART + TRAINED_PRODUCTS * examples * of_example * base_lm
    if plan.fits_reranker:
        seconds["reranker"] = 3 * SECONDS_A_PART
    seconds["evaluation"] = 2 * (SECONDS_A_PART + plan.test_images * CAPTION_TOKENS * base_lm)  # it and its start
    return seconds


def _products_per_second(text_config: Any, bf16: bool) -> float:
    """Multiplications (with additions) a second, in a layer of the base LM over a batch, on this machine as it is."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16 if bf16 else torch.float32}
    weight = torch.zeros(text_config.intermediate_size, text_config.hidden_size, **options)
    batch = torch.zeros(512, text_config.hidden_size, **options)
    torch.nn.functional.linear(batch, weight).sum().item()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 0.5:
        torch.nn.functional.linear(batch, weight).sum().item()
        done += weight.numel() * len(batch)
    return done / (time.perf_counter() - began)


def _same_plan(file: Path, texts: dict[str, str], checkpoint: str, minutes: float | None) -> Plan:
    """The plan of a training that was begun, if it is of the same data, checkpoint and minutes."""
    try:
        begun = Plan(**parse_json(file.read_bytes()))
        old = {name: (file.parent / "data" / name).read_text(encoding="utf-8") for name in texts}
    except (OSError, ValueError, TypeError) as error:
        raise RSMoEError(f"{file} is damaged ({error}); begin again in another --output") from error
    asked = (begun.checkpoint, begun.minutes, old)
    for what, was, given in zip(("checkpoint", "minutes", "captions"), asked, (checkpoint, minutes, texts)):
        if was != given:
            raise RSMoEError(f"{file.parents[1]} was begun with other {what}; give the same, or another --output")
    return begun


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60)):,}"


# ---- the end


def _evaluate(
    plan: Plan,
    data: Path,
    start: Path,
    checkpoint: Path,
    output: Path,
    features: str | Path | None,
    progress: Progress,
) -> Report:
    selection = run.select(data, "captioning", plan.test_split)
    if any(len(records) > MAX_TEST_IMAGES for records in selection.records.values()):
        selection = run.select(data, "captioning", plan.test_split, limit=MAX_TEST_IMAGES)
    ours = run.predictions_by_model(selection, str(checkpoint), data.parent / PREDICTIONS, progress=progress)
    before = run.predictions_by_model(selection, str(start), data.parent / f"start-{PREDICTIONS}", progress=progress)
    files = {name: data.parent / f"{name}-{PREDICTIONS}" for name in known_lookups(selection, str(checkpoint))}
    lookups = predictions_by_lookups(selection, str(checkpoint), files, features, progress)
    baselines = {name: other.lines for name, other in lookups.items()} | {run.START: before.lines}
    evaluated = run.evaluate(selection, ours.lines, progress, baselines=baselines)
    names = {run.START: start.name} | {name: name for name in lookups}
    against: list[Against] = [
        {"name": shown, "differences": run.baseline_differences(evaluated, name)} for name, shown in names.items()
    ]
    assert ours.checkpoint is not None
    named = replace(ours, checkpoint={**ours.checkpoint, "name": output.name})
    return run.report_of(selection, named, evaluated, against)


def _finish(report: Report, checkpoint: Path, output: Path) -> None:
    """Write the card, move the checkpoint into `output`, and remove the state. Each step may be done already."""
    state = output / STATE
    if not (output / CARD).is_file():
        facts = replace(read_facts(checkpoint), name=output.name)
        write_card(facts, output / CARD, [report], summary_table([report]))
    for stage in STAGES:
        if (state / stage / "loss.png").is_file():
            (state / stage / "loss.png").replace(output / f"{stage}.png")
    for name in (REPORT, PREDICTIONS):
        shutil.copyfile(state / name, output / name)
    stays = (STATE, "tensorboard", CARD, TRAINING_RECORD)
    whole = [file for file in checkpoint.iterdir() if file.name not in stays]
    for file in (*whole, checkpoint / TRAINING_RECORD):  # the last says that all is there
        if (output / file.name).is_dir():
            shutil.rmtree(output / file.name)
        file.replace(output / file.name)
    shutil.rmtree(state)

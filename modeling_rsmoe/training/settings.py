"""All settings of a training: a recipe (what learns, from which examples) and the arguments of TRL's trainer.

Both are dataclasses with a sentence for each field. A YAML file holds one mapping for each stage, `stage1:` and
`stage2:`, with the fields of both; TRL's parser reads it and takes changes from the command line (`--max_steps 100`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

import torch
from trl import SFTConfig, TrlParser

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, parse_yaml


Stage = Literal["stage1", "stage2"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ALL = "all"

A = TypeVar("A")

# What stage 2 has by default where it differs from stage 1 [paper: what learns in which stage].
STAGE2_DEFAULTS: dict[str, Any] = {
    "qformer": "frozen",
    "projection": "frozen",
    "language_model": "frozen",
    "router": "train",
    "experts": [ALL],
    "caption_share": 0.0,
    "answer_share": 0.0,
    "rewrite_share": 0.0,
    "router_share": 0.4,
    "expert_share": 0.6,
}
# What `rsmoe train encoder` has by default where it differs from the stages [our decision].
ENCODER = "encoder"
ENCODER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 32,
    "max_steps": 900,
    "save_steps": 60,
}
# Fields of SFTConfig that stay off.
RULED_OUT = ["fp16", "max_length", "packing", "padding_free", "push_to_hub", "auto_find_batch_size"]
RULED_OUT += ["label_smoothing_factor", "load_best_model_at_end"]
# Fields of SFTConfig that cannot be 0, and those that can; not any less, and no infinity.
ABOVE_ZERO = ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_steps"]
ABOVE_ZERO += ["logging_steps", "eval_steps", "save_total_limit", "num_train_epochs"]
ZERO_OR_MORE = ["learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "seed"]


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """What learns, and from which examples. The defaults are stage 1's; `Recipe.of("stage2")` has those of stage 2.

    Raises:
        RSMoEError: a value that a field cannot have, naming the field and what it can.
    """

    model: str | None = _setting(
        None, "The checkpoint to train from: a folder, or in stage 1 a name, assembled without its trained weights."
    )
    one_stage: bool = _setting(False, "Let stage 2 begin without a finished stage 1: the paper's one-stage ablation.")

    # what learns
    vision: Literal["frozen", "full"] = _setting("frozen", "The ViT; frozen, its features are computed once.")
    qformer: Literal["full", "queries", "lora", "frozen"] = _setting(
        "full", "The Q-Former; queries: all but the layers that only its text passes through."
    )
    projection: Literal["full", "frozen"] = _setting("full", "The query tokens and the projection to the base LM.")
    language_model: Literal["lora", "full", "frozen"] = _setting("lora", "The base LM; LoRA is merged at the end.")
    router: Literal["train", "frozen"] = _setting("frozen", "The instruction router.")
    experts: list[str] = field(default_factory=list, metadata={"help": "The experts that learn, by name, or all."})
    expert_names: list[str] | None = _setting(None, "Keep only these experts of the checkpoint; by default all.")
    expert_start: Literal["base", "random", "checkpoint"] = _setting(
        "base", "Where router and experts that learn begin: at the base LM, at random weights, or as they are."
    )
    lora_r: int = _setting(16, "Rank of the LoRA of the base LM and the Q-Former.")
    lora_alpha: float = _setting(32.0, "The LoRA's product is scaled by lora_alpha / lora_r.")
    lora_dropout: float = _setting(0.0, "Dropout on the input of the LoRA.")

    attn_implementation: str | None = _setting(None, "Attention: sdpa, eager (faster on CPUs); else the checkpoint's.")

    # learning rates; learning_rate is that of every module without one of its own
    vision_learning_rate: float | None = _setting(None, "Learning rate of the ViT, in place of learning_rate.")
    qformer_learning_rate: float | None = _setting(None, "Learning rate of the Q-Former without its cross-attention.")
    projection_learning_rate: float | None = _setting(
        None, "Learning rate of the cross-attention, the query tokens and the projection."
    )
    language_model_learning_rate: float | None = _setting(None, "Learning rate of the base LM or its LoRA.")
    router_learning_rate: float | None = _setting(None, "Learning rate of the router.")
    experts_learning_rate: float | None = _setting(None, "Learning rate of the experts.")

    # examples
    datasets: list[str] | None = _setting(None, "Datasets of captions, by default all; named twice, twice as often.")
    question_datasets: list[str] | None = _setting(None, "Datasets of questions, by default all; likewise.")
    caption_share: float = _setting(0.55, "Share of examples: the base LM captions the image.")
    answer_share: float = _setting(0.25, "Share of examples: the base LM answers a question.")
    rewrite_share: float = _setting(0.2, "Share of examples: the base LM rewrites expert texts into a caption.")
    router_share: float = _setting(0.0, "Share of examples: the router writes an expert's prompt.")
    expert_share: float = _setting(0.0, "Share of examples: an expert writes its text.")
    question_share: float = _setting(0.15, "Share of the router's examples that begin from a question.")
    detail_share: float = _setting(
        0.0, "Share of the examples of captions, rewrites, router and experts that ask for details: paragraphs."
    )
    references_per_example: int = _setting(
        5, "References of an image that one example of a caption or an expert learns at once, as if drawn one by one."
    )
    similar_images: int = _setting(8, "Similar images that rewrite examples take expert texts from too; 0 for none.")
    extra_examples: str | None = _setting(
        None, "JSONL of further examples for every epoch: image, kind, expert (or null), prompt, completions."
    )
    caption_loss: Literal["references", "reward"] = _setting(
        "references", "Captions are learned from references, or by the reward of what the base LM itself writes."
    )
    reward_samples: int = _setting(5, "Captions that are written of an image and compared by their reward.")
    object_penalty: float = _setting(1.0, "Taken off a caption's reward for each mentioned object that is not there.")
    example_weight: float = _setting(0.5, "Share of the loss in which all examples count the same, not all tokens.")
    eval_examples: int = _setting(0, "Examples of the val split whose loss is measured every eval_steps; 0 for none.")

    # before the examples of stage 1
    standardize_vision: bool = _setting(False, "Give the ViT's features mean 0 and spread 1 (of 500 training images).")
    alignment_steps: int = _setting(0, "Steps in which the Q-Former first learns to name the captions' words.")
    alignment_batch_size: int = _setting(32, "Images of a step of alignment.")
    alignment_learning_rate: float = _setting(3e-4, "Learning rate of alignment.")
    alignment_qformer_learning_rate: float = _setting(9e-5, "That of what comes from a pretrained text encoder.")
    alignment_warmup_steps: int = _setting(50, "Steps of alignment in which the learning rates rise.")

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.alignment_steps and self.qformer in ("frozen", "lora"):
            raise RSMoEError(
                f"alignment_steps is {self.alignment_steps}, but the Q-Former is {self.qformer}: it is aligned only "
                "where its own weights learn; set qformer to queries or full, or alignment_steps to 0"
            )

    @classmethod
    def of(cls, stage: Stage, **changes: Any) -> "Recipe":
        """The stage's defaults with changes.

        Args:
            stage: "stage1" or "stage2".
            **changes: fields.
        """
        return cls(**(STAGE2_DEFAULTS if stage == "stage2" else {}) | changes)

    @property
    def shares(self) -> dict[str, float]:
        """Kind of example -> its share."""
        kinds = ("caption", "answer", "rewrite", "router", "expert")
        return {kind: getattr(self, f"{kind}_share") for kind in kinds}


@dataclass
class EncoderRecipe:
    """How the ViT is adapted to remote sensing (`rsmoe train encoder`), and to which images.

    Raises:
        RSMoEError: a value that a field cannot have, naming the field and what it can.
    """

    model: str = _setting("rs-moe-nano", "The checkpoint to train from: a folder, or a name, assembled untrained.")
    datasets: list[str] | None = _setting(None, "Datasets of images, by default all; named twice, twice as often.")
    image_size: int = _setting(168, "Pixels of a side; fewer than the checkpoint's make a step faster.")
    head_learning_rate: float = _setting(
        3e-4, "Learning rate of the heads, which are dropped; learning_rate: the ViT's."
    )

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass
class TrainArguments(SFTConfig):
    """TRL's SFTConfig with our defaults; fields that this project's examples and checkpoints rule out are refused.

    Every field of transformers' TrainingArguments can be set: per_device_train_batch_size, learning_rate,
    num_train_epochs or max_steps, warmup_steps, bf16, activation_checkpointing, save_steps, seed, ...
    """

    learning_rate: float = _setting(5e-4, "Learning rate of every module that has none of its own.")
    num_train_epochs: float = _setting(3.0, "Passes over the examples, where max_steps is not set.")
    max_steps: int = _setting(-1, "Steps in place of passes; -1 is not set.")
    per_device_train_batch_size: int = _setting(16, "Examples of a step in one process.")
    per_device_eval_batch_size: int = _setting(16, "Examples of the val split that are measured together.")
    weight_decay: float = _setting(0.05, "Weight decay of AdamW, for matrices [paper: 0.05].")
    warmup_steps: float = _setting(50, "Steps in which the learning rate rises; below 1, their share of all steps.")
    logging_steps: float = _setting(10, "Steps between two entries of the log.")
    save_steps: float = _setting(100, "Steps between two checkpoints, from which --resume goes on.")
    save_total_limit: int | None = _setting(2, "Checkpoints that are kept.")
    seed: int = _setting(17, "Seed of examples, new weights and dropout.")
    max_length: int | None = _setting(None, "Sequences are never cut: cutting would lose image tokens.")
    bf16: bool = _setting(
        False, "Compute in bfloat16; frozen weights of the base LM are kept in it, weights that learn in float32."
    )
    activation_checkpointing: bool | None = _setting(None, "Recompute activations: slower, less memory.")
    gradient_checkpointing: bool | None = _setting(  # type: ignore[assignment]  # as in TrainingArguments
        None, "The older name of activation_checkpointing."
    )
    report_to: None | str | list[str] = _setting("none", "Further trackers of transformers; TensorBoard is always on.")
    disable_tqdm: bool | None = _setting(True, "transformers' own bar; ours counts examples.")
    prediction_loss_only: bool = _setting(True, "Only the loss is measured on the val split.")

    def __post_init__(self) -> None:
        # transformers refuses bfloat16 where there is only a CPU, unless use_cpu is set.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        for name in (*ABOVE_ZERO, *ZERO_OR_MORE):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf or (value == 0 and name in ZERO_OR_MORE)):
                expected = "above 0" if name in ABOVE_ZERO else "of 0 or more"
                raise RSMoEError(f"{name} is {value}, expected a number {expected}: correct it")
        super().__post_init__()
        for name in RULED_OUT:
            value = None if name == "max_length" else False
            if getattr(self, name) != value:
                raise RSMoEError(f"{name} is {getattr(self, name)!r}; training needs {value!r}: leave it out")
        # Examples come in their final order, with columns that only our collator reads.
        self.remove_unused_columns = False
        self.train_sampling_strategy = "sequential"
        self.average_tokens_across_devices = True


def read_settings(
    file: str | Path, stage: Stage, output_dir: str | Path, changes: Sequence[str] = ()
) -> tuple[Recipe, TrainArguments]:
    """The settings of a stage.

    Args:
        file: YAML with a mapping for each stage.
        stage: ``stage1`` or ``stage2``.
        output_dir: the trainer's folder.
        changes: as on a command line, ``["--max_steps", "100"]``; they win over the file.

    Raises:
        RSMoEError: no such file, no such stage in it, or a field that is unknown or has a value it cannot have.
    """
    return _parse(Recipe, stage, STAGE2_DEFAULTS if stage == "stage2" else {}, file, output_dir, changes)


def read_encoder_settings(
    file: str | Path | None, output_dir: str | Path, changes: Sequence[str] = ()
) -> tuple[EncoderRecipe, TrainArguments]:
    """The settings of `rsmoe train encoder`, as of `read_settings`; without a file the defaults with the changes."""
    return _parse(EncoderRecipe, ENCODER, ENCODER_DEFAULTS, file, output_dir, changes)


def _parse(
    recipe_class: type[A],
    section: str,
    defaults: dict[str, Any],
    file: str | Path | None,
    output_dir: str | Path,
    changes: Sequence[str],
) -> tuple[A, TrainArguments]:
    """A mapping of the file, over the defaults and under the changes."""
    values = {} if file is None else _section(Path(file), section)
    if "output_dir" in values:
        raise RSMoEError(f"{file}: {section} sets output_dir; give the folder with --output instead")
    parser = _Parser(cast(Any, [recipe_class, TrainArguments]))
    unknown = parser.set_defaults_with_config(**defaults | {"output_dir": str(output_dir)} | values)
    if unknown:
        names = ", ".join(name.removeprefix("--") for name in unknown[::2])
        raise RSMoEError(f"{file}: {section} has no setting {names}; see `rsmoe train {section} --settings`")
    try:
        recipe, arguments = parser.parse_args_into_dataclasses(args=list(changes), look_for_args_file=False)
    except RSMoEError:
        raise
    except (TypeError, ValueError) as error:
        remedy = "correct them" if file is None else f"correct them in {file}"
        raise RSMoEError(f"the settings of {section} do not fit ({error}); {remedy}") from error
    return recipe, arguments


def describe_settings(section: str) -> str:
    """Every field of the recipe and ours of the arguments, one a line: name, default, sentence.

    Args:
        section: "stage1", "stage2" or "encoder".
    """
    recipe = EncoderRecipe if section == ENCODER else Recipe
    defaults, lines = {ENCODER: ENCODER_DEFAULTS, "stage2": STAGE2_DEFAULTS}.get(section, {}), []
    for setting in [*fields(recipe), *(f for f in fields(TrainArguments) if f.name in TrainArguments.__annotations__)]:
        default = [] if callable(setting.default_factory) else setting.default
        value = defaults.get(setting.name, default)
        lines.append(f"{setting.name} ({value if value is not None else 'not set'}): {setting.metadata['help']}")
    return "\n".join(lines)


class _Parser(TrlParser):
    """Errors as ours, in one line, where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise RSMoEError(f"wrong setting: {message}")


def _section(file: Path, stage: str) -> dict[str, Any]:
    check_input(file, "a YAML file of training settings")
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RSMoEError(f"{file} is no YAML ({error}); correct it") from error
    section = content.get(stage) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise RSMoEError(
            f"{file} has no mapping {stage}; give one mapping for each of {', '.join((ENCODER, *STAGES))}"
        )
    return section


def _check_fields(recipe: Any) -> None:
    for name, kind in get_type_hints(type(recipe)).items():  # not fields(): the parser simplifies their types
        expected = _expected(name, kind, getattr(recipe, name))
        if expected is not None:
            raise RSMoEError(f"{name} is {getattr(recipe, name)!r}; expected {expected}")


def _expected(name: str, kind: Any, value: Any) -> str | None:
    """What a field of the recipe can be, where the value is nothing of that."""
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        return None if value in kinds else f"one of {', '.join(kinds)}"
    if value is None and type(None) in kinds:
        return None
    if list[str] in (kind, *kinds):
        fits = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        return None if fits else "a list of names"
    if int in kinds or float in kinds:
        types = (int, float) if float in kinds else (int,)
        if not isinstance(value, types) or isinstance(value, bool) or not 0 <= value < math.inf:
            return "a number" if float in kinds else "a whole number"
    if name in ("question_share", "detail_share", "example_weight", "lora_dropout") and value > 1:
        return "a share from 0 to 1"
    if name in ("lora_r", "alignment_batch_size", "references_per_example", "image_size") and value < 1:
        return "1 or more"
    if name == "reward_samples" and value < 2:
        return "2 or more, which are compared"
    return None

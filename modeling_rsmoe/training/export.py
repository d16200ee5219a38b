"""What a training changed, without frozen weights: the small file that `rsmoe assemble` adds to pretrained modules."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..errors_rsmoe import RSMoEError
from ..hub.assemble import LORA_SCALING
from ..utils.files import disk_errors, parse_json, write_whole
from ..utils.provenance import TRAINING_RECORD
from .checkpoints import save_tensors
from .outputs import LEARNED, STATE
from .stages import ALIGNED, STANDARD


PEFT_PREFIX = "base_model.model."  # of parameters inside a PeftModel
MERGED_PREFIX = "llm_lora."  # of the base LM's pairs in the file
BASE_LM_LORA = re.compile(r"model\.language_model\.(.+)\.(lora_[AB])\.default\.weight")


def export_trained(outputs: Sequence[str | Path], file: str | Path, rank: int | None = None) -> Path:
    """Write what the stages learned, in half precision, for `hub_configs/NAME/trained.safetensors`.

    Beside it the same name with .json says how it came about: the record of the last stage, with those before it (of
    this list, where a record names none itself).

    Args:
        outputs: folders of finished trainings, in their order: those of stage 1 and stage 2. Later weights win. Where
            the first began at a checkpoint that had learned already, that one's trained.safetensors comes before it.
        file: the safetensors file; low-rank pairs of the base LM stay pairs, which keeps it small. Those of several
            trainings stand side by side, as one of a higher rank.
        rank: keep of those pairs only the nearest of this rank (truncated singular value decomposition), where theirs
            is higher. None keeps them as they are.

    Returns:
        `file`.

    Raises:
        RSMoEError: a folder is no finished training, stands there twice, has lost its state, or has LoRA that cannot
            be kept as pairs; `rank` is below 1.
    """
    record: dict = {}
    tensors: dict[str, torch.Tensor] = {}
    pairs: dict[str, list[torch.Tensor]] = {}  # of the base LM: name -> those of each training
    scalings: list[float] = []
    if rank is not None and rank < 1:
        raise RSMoEError(f"a LoRA of rank {rank} holds nothing; give 1 or more")
    given = [Path(output).absolute() for output in outputs]
    if twice := [output for output in given if given.count(output) > 1]:
        raise RSMoEError(f"{twice[0]} is given twice; give each training once")
    for output in given:
        of_output, learned, scaling = _earlier(output) if output.is_file() else _outcome(output)
        record = {**of_output, "before": record} if record and not of_output.get("before") else of_output
        own = [name for name in learned if name.startswith(MERGED_PREFIX)]
        scalings += [scaling] if own else []
        for name in own:
            pairs.setdefault(name, []).append(learned.pop(name))
        tensors |= learned
    tensors |= {name: _side_by_side(name, values, scalings) for name, values in pairs.items()}
    if rank is not None:
        for name in [name for name in tensors if name.startswith(MERGED_PREFIX) and name.endswith("lora_A")]:
            other = f"{name.removesuffix('A')}B"
            tensors[name], tensors[other] = _nearest(tensors[name].float(), tensors[other].float(), rank)
    if not tensors:
        raise RSMoEError("nothing to export; give the folder of a finished training")
    metadata = {"format": "pt"}
    if scalings:
        metadata[LORA_SCALING] = str(scalings[0] if len(scalings) == 1 else 1.0)
    target = Path(file)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    with disk_errors("cannot write", "Free some space or give another file."):
        save_tensors(halved, target, metadata)
        write_whole(target.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return target


def _side_by_side(name: str, values: list[torch.Tensor], scalings: list[float]) -> torch.Tensor:
    """The factors of one side of all trainings' pairs, A [r, in] or B [out, r], B with their scalings."""
    if len(scalings) == 1:
        return values[0]
    if name.endswith("lora_A"):
        return torch.cat([value.float() for value in values])
    return torch.cat([scaling * value.float() for scaling, value in zip(scalings, values, strict=True)], dim=1)


def _nearest(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] whose product is nearest to `b @ a` in the Frobenius norm (Eckart and Young)."""
    if a.shape[0] <= rank:
        return a, b
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T)
    root = values[:rank].sqrt()
    return root[:, None] * (right[:rank] @ q_a.T), q_b @ left[:, :rank] * root


def _earlier(file: Path) -> tuple[dict, dict[str, torch.Tensor], float]:
    """As `_outcome`, of a trained.safetensors with its record."""
    try:
        record = parse_json(file.with_suffix(".json").read_bytes())
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            values = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        return record, values, float(metadata.get(LORA_SCALING, 1))
    except (OSError, ValueError, SafetensorError) as error:
        raise RSMoEError(f"{file} is no file of trained weights with its .json ({error}); export it again") from error


def _outcome(output: Path) -> tuple[dict, dict[str, torch.Tensor], float]:
    """The record of a finished training, its weights by name (of what came before the examples, then of these), and
    the scaling of its LoRA on the base LM."""
    try:
        record = parse_json((output / TRAINING_RECORD).read_bytes())
        if not record["finished"]:
            raise ValueError("it is not finished")
        before = [name for name in (STANDARD, ALIGNED) if (output / STATE / name).is_file()]
        files = [load_file(output / STATE / name) for name in (*before, LEARNED)]
        learned = {key.removeprefix(PEFT_PREFIX): value for tensors in files for key, value in tensors.items()}
        recipe = record["recipe"]
        scaling = recipe["lora_alpha"] / recipe["lora_r"] if "lora_r" in recipe else 1.0
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RSMoEError(
            f"{output} is no finished training with its {STATE} folder ({error}); give the output of `rsmoe train`"
        ) from error
    named: dict[str, torch.Tensor] = {}
    for name, value in learned.items():
        pair = BASE_LM_LORA.fullmatch(name)
        if "lora_" in name and not pair and ".default." in name:
            raise RSMoEError(f"{output}: the LoRA {name} is not of the base LM; train the Q-Former's own weights")
        named[f"{MERGED_PREFIX}{pair[1]}.{pair[2]}" if pair else name] = value
    return record, named, scaling

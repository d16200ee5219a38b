"""What a training changed, without frozen weights: the small file that `rsmoe assemble` adds to pretrained modules."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors_rsmoe import RSMoEError
from ..utils.files import disk_errors, parse_json, write_whole
from ..utils.provenance import TRAINING_RECORD
from .checkpoints import save_tensors
from .outputs import LEARNED, STATE
from .stages import ALIGNED, STANDARD


PEFT_PREFIX = "base_model.model."  # of parameters inside a PeftModel
BASE_LM_LORA = re.compile(r"model\.language_model\.(.+)\.(lora_[AB])\.default\.weight")


def export_trained(outputs: Sequence[str | Path], file: str | Path) -> Path:
    """Write what the stages learned, in half precision, for `hub_configs/NAME/trained.safetensors`.

    Beside it the same name with .json says how it came about: the record of the last stage, with those before it.

    Args:
        outputs: folders of finished trainings, in their order: those of stage 1 and stage 2. Later weights win.
        file: the safetensors file; low-rank pairs of the base LM stay pairs, which keeps it small.

    Returns:
        `file`.

    Raises:
        RSMoEError: a folder is no finished training, its state was removed, or its LoRA cannot be kept as pairs.
    """
    tensors: dict[str, torch.Tensor] = {}
    metadata = {"format": "pt"}
    for output in map(Path, outputs):
        record, learned = _outcome(output)
        recipe = record["recipe"]
        for name, value in learned.items():
            pair = BASE_LM_LORA.fullmatch(name)
            if pair:
                name = f"llm_lora.{pair[1]}.{pair[2]}"
                metadata["language_model_lora_scaling"] = str(recipe["lora_alpha"] / recipe["lora_r"])
            if "lora_" in name and not pair and ".default." in name:
                raise RSMoEError(f"{output}: the LoRA {name} is not of the base LM; train the Q-Former's own weights")
            if pair and name in tensors:
                raise RSMoEError(f"{output}: the base LM has LoRA of an earlier stage already; give one stage with it")
            tensors[name] = value.to(torch.float16) if value.is_floating_point() else value
    if not tensors:
        raise RSMoEError("nothing to export; give the folder of a finished training")
    target = Path(file)
    with disk_errors("cannot write", "Free some space or give another file."):
        save_tensors(tensors, target, metadata)
        write_whole(target.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return target


def _outcome(output: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The record of a finished training, and its weights by name: of what came before the examples, then of these."""
    try:
        record = parse_json((output / TRAINING_RECORD).read_bytes())
        if not record["finished"]:
            raise ValueError("it is not finished")
        before = [name for name in (STANDARD, ALIGNED) if (output / STATE / name).is_file()]
        files = [load_file(output / STATE / name) for name in (*before, LEARNED)]
        return record, {key.removeprefix(PEFT_PREFIX): value for tensors in files for key, value in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RSMoEError(
            f"{output} is no finished training with its {STATE} folder ({error}); give the output of `rsmoe train`"
        ) from error

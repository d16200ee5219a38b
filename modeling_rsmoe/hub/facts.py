"""What a model card and a STAC item say about a checkpoint, read from the files of its folder; no weight is loaded.

A folder is one under hub_configs or a checkpoint's own. Its config.json, generation_config.json and
processor_config.json must be there. Optional are sources.yaml or parts.yaml (where parts came from), training.json,
trained.json or training.yaml (how it was trained), and card.yaml (what none of these can say: uses, limits, risks, licences of data).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn
from transformers import AutoImageProcessor, GenerationConfig

from ..configuration_rsmoe import RSMoEConfig
from ..errors_rsmoe import RSMoEError
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..utils.provenance import TRAINING_RECORD
from .sources import HUB_CONFIGS, SOURCES_FILE, Source, read_sources


CARD_FACTS, PARTS_FILE, SETTINGS = "card.yaml", "parts.yaml", "training.yaml"
RECORDS = (TRAINING_RECORD, "trained.json")  # of a checkpoint, and of the trained weights under hub_configs
INSTRUCTBLIP, LLM = "instructblip", "language_model"  # the entries of parts.yaml
HUB = "https://huggingface.co/"
# Fields of a training's recipe, and what of the model they let learn.
_LEARNABLE = {
    "vision": "image encoder",
    "qformer": "Q-Former",
    "projection": "projection",
    "language_model": "base LM",
}
_LEARNABLE |= {"router": "router", "experts": "experts"}
_LEARNED = {"stage1": "Q-Former, projection, LoRA on the base LM", "stage2": "router and experts"}  # [paper]


@dataclass(frozen=True)
class Part:
    """A part of the model; of `count` equal ones, the parameters of each. `origin` and `license` are Markdown."""

    name: str
    architecture: str
    parameters: int
    origin: str
    license: str
    count: int = 1


@dataclass(frozen=True)
class Step:
    """A step of a training: what learned, from how much, in batches of which size, and its highest learning rate."""

    name: str
    learned: str
    amount: str  # "38,400 rows" or "3 epochs"
    batch: int | None  # None: no steps, a closed form
    learning_rate: float | None
    minutes: int | None = None


@dataclass(frozen=True)
class Dataset:
    """What was learned from a dataset, and the licence of its images and texts."""

    name: str
    url: str
    learned: str
    license: str


@dataclass(frozen=True)
class Training:
    """How a checkpoint was trained, as far as card.yaml says it. `minutes` are by the names of the steps."""

    machine: str
    minutes: Mapping[str, int]
    data: tuple[Dataset, ...]
    notes: str = ""


@dataclass(frozen=True)
class Texts:
    """card.yaml: texts in Markdown. `license` is an SPDX identifier or "other"; `parts` are notes by field of the model."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_notes: str = ""
    summary: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    intended_use: str = ""
    out_of_scope: str = ""
    training: Training | None = None
    scores: str = ""
    limits: tuple[str, ...] = ()
    risks: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What a reader of a card wants to know and this does not say."""
        wanted = ("license", "summary", "intended_use", "limits", "risks")
        return [name for name in wanted if not getattr(self, name)]


@dataclass(frozen=True)
class Facts:
    """Everything a card can say without reports. `trained`: false where the folder is the start of a training."""

    name: str
    folder: Path
    trained: bool
    config: RSMoEConfig
    generation: GenerationConfig
    image_processor: Any
    texts: Texts
    base_models: tuple[str, ...]
    parts: tuple[Part, ...]
    parameters: int
    steps: tuple[Step, ...]
    record: Mapping[str, Any] | None  # training.json or trained.json

    @property
    def datasets(self) -> list[str]:
        """Names of what was learned from, as card.yaml lists them or training.json names them; each once."""
        if self.texts.training:
            return [one.name for one in self.texts.training.data]
        if not self.record:
            return []
        recipe, data = self.record["recipe"], self.record["data"]
        counts = {"datasets": "captioned_images", "question_datasets": "questions"}
        return list(dict.fromkeys(name for key, of in counts.items() if data[of] for name in recipe.get(key) or ()))

    @property
    def bytes_per_parameter(self) -> int:
        """Of the weights as they are saved."""
        return cast(torch.dtype, self.config.dtype or torch.float32).itemsize

    @property
    def minutes(self) -> int:
        """Of the whole training, as far as they are known."""
        return sum(self.texts.training.minutes.values()) if self.texts.training else 0


def facts_folder(name: str | Path) -> Path:
    """The folder of a name under hub_configs, or of a path.

    Raises:
        RSMoEError: it is neither.
    """
    own = HUB_CONFIGS / str(name)
    folder = own if Path(name).name == str(name) and own.is_dir() else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in HUB_CONFIGS.glob("*/config.json")))
        raise RSMoEError(f"{name} is neither a checkpoint's folder (with config.json) nor one of {known}.")
    return folder


def read_facts(
    name: str | Path,
    *,
    trained: bool | None = None,
    shipped: bool = True,
    source: Source = "wheel",
    config: RSMoEConfig | None = None,
) -> Facts:
    """Read the files of a folder.

    Args:
        name: a name under hub_configs such as ``rs-moe-nano``, or a checkpoint's folder.
        trained: whether it is; by default true where card.yaml or a record says how it was trained.
        shipped: whether these are the trained weights that card.yaml is about; if not, only what it says of licences
            and parts holds.
        source: which of the two places in sources.yaml the parts were had from.
        config: of the checkpoint, by default the folder's.

    Raises:
        RSMoEError: no such folder, or a file that cannot be read; the message names it.
    """
    folder = facts_folder(name)
    try:
        config = config or RSMoEConfig.from_pretrained(folder)
        generation = GenerationConfig.from_pretrained(folder)
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RSMoEError(f"the settings in {folder} cannot be read ({reason}): restore them.") from error
    texts, record = read_texts(folder / CARD_FACTS), _record(folder)
    if trained is None:
        trained = texts.training is not None or record is not None
    shipped = shipped and (trained or texts.training is None)
    if not shipped:
        kept = ("license", "license_name", "license_link", "license_notes", "parts")
        texts = Texts(**{name: getattr(texts, name) for name in kept})
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config)
    origins = _origins(folder, source)
    return Facts(
        name=folder.resolve().name,
        folder=folder,
        trained=trained,
        config=config,
        generation=generation,
        image_processor=image_processor,
        texts=texts,
        base_models=tuple(dict.fromkeys(model_id for model_id, _, _ in origins.values())),
        parts=_parts(model, origins, texts),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=_steps(folder, texts, record) if trained and shipped else (),
        record=record if trained and shipped else None,
    )


# ---- card.yaml


def read_texts(path: Path) -> Texts:
    """card.yaml; without the file, nothing is said.

    Raises:
        RSMoEError: a key that is unknown, missing, or of another kind.
    """
    given = _yaml(path)
    try:
        training = given.pop("training", None)
        if training is not None:
            data = tuple(_made(Dataset, one) for one in training.pop("data", []))
            training = _made(Training, {"minutes": {}} | training | {"data": data})
        lists = {name: tuple(given.pop(name, None) or ()) for name in ("limits", "risks")}
        return _made(Texts, given | lists | {"training": training})
    except (TypeError, AttributeError) as error:
        raise RSMoEError(f"{path} is not what `rsmoe card` reads ({error}): correct it.") from error


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of `values`, whose texts lose the white space around them."""
    unknown = sorted(values.keys() - {one.name for one in fields(kind)})
    if unknown:
        raise TypeError(f"unknown {', '.join(unknown)}")
    return kind(**{name: value.strip() if isinstance(value, str) else value for name, value in values.items()})


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RSMoEError(f"{path} cannot be read ({reason}): correct it.") from error
    if not isinstance(found, dict):
        raise RSMoEError(f"{path} is no mapping of names to values: correct it.")
    return found


# ---- parts


def _origins(folder: Path, source: Source) -> dict[str, tuple[str, str, str]]:
    """Field of the model -> id of the model it came from, Markdown of where it was had, its licence."""
    if (folder / SOURCES_FILE).is_file():
        found = {}
        for name, part in read_sources(folder.resolve().name, folder.resolve().parent).parts.items():
            wheel, hub = part.wheel, part.hub
            place = f"[{hub.repo_id}]({HUB}{hub.repo_id})"
            place += f", from the wheel `{wheel.name}` {wheel.version}" if source == "wheel" else ""
            same = source == "hub" or wheel.license == hub.license
            licence = hub.license if same else f"{wheel.license} (wheel), {hub.license} (model)"
            found[name] = (hub.repo_id, place, licence)
        return found
    given = _yaml(folder / PARTS_FILE)
    if not given:
        return {}
    try:
        entries = {name: (given[name]["repo_id"], given[name]["license"]) for name in (INSTRUCTBLIP, LLM)}
    except (KeyError, TypeError) as error:
        raise RSMoEError(f"{folder / PARTS_FILE} lacks repo_id or license of {error}: restore it.") from error
    of = {"vision_model": INSTRUCTBLIP, "qformer": INSTRUCTBLIP, "language_model": LLM}
    places = {part: entries[entry] for part, entry in of.items()}
    return {part: (repo, f"[{repo}]({HUB}{repo})", licence) for part, (repo, licence) in places.items()}


def _parts(
    model: RSMoEForConditionalGeneration, origins: Mapping[str, tuple[str, str, str]], texts: Texts
) -> tuple[Part, ...]:
    config, encoder = model.config, model.model.encoder
    router, experts = model.model.router, list(model.model.experts.values())
    queries = f"{_layers(config.qformer_config)}, {config.num_query_tokens} queries"
    known: dict[str, tuple[str, str, list[nn.Module]]] = {
        "vision_model": ("image encoder", _layers(config.vision_config), [encoder.vision_model]),
        "qformer": ("Q-Former", queries, [encoder.qformer, encoder.query_tokens]),
        "projection": ("projection", "", [encoder.projection]),
        "language_model": ("base LM", _layers(config.text_config), [model.model.language_model, model.lm_head]),
        "router": ("router", _kind(config.router_config), [router]),
        "experts": ("experts", _kind(config.expert_config), experts[:1]),
    }
    if model.model.reranker is not None:
        rank = f"rank {config.reranker_rank}, {config.reranker_buckets:,} n-grams"
        known["reranker"] = ("reranker", rank, [model.model.reranker])
    own = texts.license_name or texts.license or ""
    parts = []
    for name, (label, architecture, modules) in known.items():
        _, place, licence = origins.get(name, ("", "", own))
        note = texts.parts.get(name, "")
        origin = f"{place}: {note}" if place and note else place or note
        count = len(experts) if name == "experts" else 1
        counted = sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())
        parts.append(Part(label, architecture, counted, origin, licence, count))
    return tuple(parts)


def _layers(config: Any) -> str:
    return f"{config.num_hidden_layers} layers of width {config.hidden_size}"


def _kind(config: Any) -> str:
    return f"low-rank (rank {config.r})" if config.expert_type == "lora" else "layers of its own"


# ---- training


def _record(folder: Path) -> dict[str, Any] | None:
    """training.json of a finished training, or what trained.json says of the trained weights; None without them."""
    path = next((folder / name for name in RECORDS if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RSMoEError(f"{path} cannot be read ({error}): restore it.") from error
    return found if isinstance(found, dict) and found.get("finished") else None


def _steps(folder: Path, texts: Texts, record: Mapping[str, Any] | None) -> tuple[Step, ...]:
    """Of training.json, which holds the stage before in itself; else of the settings in training.yaml."""
    reranker = record and record.get("reranker")
    if record is None:
        stages = [(stage, _yaml(folder / SETTINGS).get(stage) or {}, _LEARNED[stage]) for stage in _LEARNED]
    else:
        stages = []
        while record:
            settings = {**record["recipe"], **record["arguments"]}
            stages.insert(0, (record["stage"], settings, _learned(settings)))
            record = record.get("before")
    minutes = texts.training.minutes if texts.training else {}
    steps = []
    for stage, settings, learned in stages:
        name = f"stage {stage.removeprefix('stage')}"
        if settings.get("alignment_steps"):
            batch = int(settings["alignment_batch_size"])
            images, rate = int(settings["alignment_steps"]) * batch, float(settings["alignment_learning_rate"])
            amount = f"{images:,} images"
            steps.append(
                Step("warm-up", "queries, cross-attention, Q-Former", amount, batch, rate, minutes.get("warm-up"))
            )
        if settings:
            batch = int(settings.get("examples_per_step") or settings["per_device_train_batch_size"])
            count = int(settings.get("max_steps") or 0)
            amount = f"{count * batch:,} rows" if count > 0 else f"{settings['num_train_epochs']:g} epochs"
            steps.append(Step(name, learned, amount, batch, float(settings["learning_rate"]), minutes.get(name)))
    if reranker:
        amount = f"{reranker['data']['captioned_images']:,} images"
        steps.append(Step("reranker", "reranker, in closed form", amount, None, None, minutes.get("reranker")))
    return tuple(steps)


def _learned(recipe: Mapping[str, Any]) -> str:
    """In words, what a recipe let learn."""
    learned = []
    for name, label in _LEARNABLE.items():
        value = recipe.get(name)
        if value and value != "frozen":
            how = "LoRA on the " if value == "lora" else ""
            learned.append(how + (label if name != "experts" or value == ["all"] else f"experts {', '.join(value)}"))
    return ", ".join(learned)

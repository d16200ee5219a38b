"""What the common tests import from parts of transformers' repository that its source distribution does not carry.

| imported by the common tests | here |
|---|---|
| `generation.test_utils.GenerationTesterMixin` | our own tests of the same contract: `generation.py` |
| `exporters.test_export.ExportTesterMixin` | an empty class: transformers' torch.export and ONNX tests are not run |
| `utils.test_configuration_utils.config_common_kwargs` | fields of PreTrainedConfig, none at its default |
| `fetch_hub_objects_for_ci.url_to_local_path` | an image made on the spot for a Hub URL: no test needs the network |
"""

import atexit
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from PIL import Image

from .generation import GenerationTests


class ExportTests:
    """Takes the place of transformers' export tests, and holds none."""


CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_folder: Path | None = None


def url_to_local_path(url: str) -> str:
    """Returns the path of a small image made here for an image URL; any other URL as it is (its tests are skipped)."""
    global _folder
    if not url.endswith(IMAGE_ENDINGS):
        return url
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="rsmoe-common-tests-"))
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    path = _folder / url.rsplit("/", 1)[1]
    if not path.exists():
        Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(path)
    return str(path)


def install(package: str) -> None:
    """Enters the stand-ins into `sys.modules` under the names that the common tests of `package` import."""
    contents: dict[str, dict[str, Any]] = {
        f"{package}.generation.test_utils": {"GenerationTesterMixin": GenerationTests},
        f"{package}.exporters.test_export": {"ExportTesterMixin": ExportTests},
        f"{package}.utils.test_configuration_utils": {"config_common_kwargs": CONFIG_COMMON_KWARGS},
        "fetch_hub_objects_for_ci": {"url_to_local_path": url_to_local_path},
    }
    for name, values in contents.items():
        parent, _, leaf = name.rpartition(".")
        if parent and parent != package and parent not in sys.modules:
            folder = types.ModuleType(parent)
            folder.__path__ = []
            sys.modules[parent] = folder
        module = types.ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module

"""Heavy libraries that only some commands need: imported where they are used, and a missing one says what installs it."""

import importlib
from typing import Any

from ..errors_rsmoe import RSMoEError


def require(module: str, extra: str) -> Any:
    """Import `module` ("ray.data"), which the extra `extra` of this package ("scale") brings."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        name = module if module.split(".")[0] == missing.split(".")[0] else f"{module}, and that {missing}"
        raise RSMoEError(f'this needs {name}, which is not installed: pip install "rsmoe[{extra}]"') from error

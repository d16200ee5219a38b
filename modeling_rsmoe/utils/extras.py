"""Heavy libraries that only some commands need: imported where they are used, and a missing one says what installs it."""

import importlib
from typing import Any

from ..errors_rsmoe import RSMoEError


def require(module: str, extra: str) -> Any:
    """Import `module`, which the extra `extra` of this package brings.

    Args:
        module: its name for `import`, which may hold dots: ``"ray.data"``.
        extra: the name in pyproject.toml's optional-dependencies: ``"geo"``.

    Returns:
        The module.

    Raises:
        RSMoEError: it, or a module that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        name = module if module.split(".")[0] == missing.split(".")[0] else f"{module}, and that {missing}"
        raise RSMoEError(f'this needs {name}, which is not installed: pip install "rsmoe[{extra}]"') from error

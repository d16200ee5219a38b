"""From a checkpoint and images to texts: what the command line, the server, the demo, scenes and evaluation share.

```python
from modeling_rsmoe.inference import Predictor, load

checkpoint = load("rs-moe-nano")
predictor = Predictor(checkpoint.model, checkpoint.processor)
caption = predictor.predict(["tile.png"])[0].text
```
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .caching import CachingPredictor
    from .checkpoint import Checkpoint, load
    from .predict import GenerationSettings, Prediction, Predictor


_MODULES = {"CachingPredictor": "caching", "Checkpoint": "checkpoint", "load": "checkpoint"}
_MODULES |= dict.fromkeys(("GenerationSettings", "Prediction", "Predictor"), "predict")


def __getattr__(name: str):
    """torch is imported with the first name that is asked for, so that `rsmoe --help` answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


__all__ = ["CachingPredictor", "Checkpoint", "GenerationSettings", "Prediction", "Predictor", "load"]

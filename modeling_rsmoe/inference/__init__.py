"""From a checkpoint and images to texts: what the command line, the server, the demo, scenes and evaluation share.

```python
from modeling_rsmoe.inference import Predictor, load

checkpoint = load("rs-moe-nano")
predictor = Predictor(checkpoint.model, checkpoint.processor)
caption = predictor.predict(["tile.png"])[0].text
```
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .checkpoint import Checkpoint, load
    from .predict import GenerationSettings, Prediction, Predictor


def __getattr__(name: str):
    """torch is imported with the first name that is asked for, so that `rsmoe --help` answers at once."""
    if name in ("Checkpoint", "load"):
        from . import checkpoint as module
    elif name in ("GenerationSettings", "Prediction", "Predictor"):
        from . import predict as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


__all__ = ["Checkpoint", "GenerationSettings", "Prediction", "Predictor", "load"]

"""The instruction router: writes a text prompt for each expert from the image and the user's instruction [paper].

It is no softmax gate: like an expert it reads sequences of its own, whose completions are the experts' prompts.
"""

from .configuration_rsmoe import RSMoERouterConfig
from .experts_rsmoe import RSMoEExpert


class RSMoEInstructionRouter(RSMoEExpert):
    """Weights by which the base LM becomes the router [our decision: the paper's router model was not recovered]."""

    config_class = RSMoERouterConfig


__all__ = ["RSMoEInstructionRouter"]

"""RS-MoE as a model of lmms-eval, for any task with one image a request."""

from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from lmms_eval.utils import Collator
from tqdm import tqdm

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import GenerationSettings, Predictor, load


@register_model("rsmoe")
class RSMoE(lmms):
    """
    Args:
        pretrained: a checkpoint as of `modeling_rsmoe.inference.load`.
        device, dtype: as of `load`.
        batch_size: requests in one batch.
        system: who speaks, as of `Predictor`: `full`, `base`, ...
        settings: as of `GenerationSettings`: fusion, router_mode, ...; a task's own generation arguments win.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        system: str = "full",
        **settings: Any,
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise RSMoEError(f"batch_size is {batch_size!r}, expected a number of at least 1; give --batch_size 8")
        checkpoint = load(pretrained, dtype, device)
        self.model, self.processor, self.device = checkpoint.model, checkpoint.processor, checkpoint.model.device
        self.batch_size, self.system = int(batch_size), system
        self.settings = GenerationSettings(**settings).arguments()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One text for each request, which ends before the first of its stop strings (`until`)."""
        # A batch shares one set of generation arguments.
        collator = Collator([request.args for request in requests], sort_fn=lambda args: args[0], grouping=True)
        texts = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for batch in collator.get_batched(n=self.batch_size):
                arguments, until = _generation_arguments(batch[0][1])
                predictor = Predictor(self.model, self.processor, self.settings | arguments, self.system)
                predictions = predictor.predict([self._image(*args) for args in batch], [args[0] for args in batch])
                texts += [_before(until, prediction.text) for prediction in predictions]
                bar.update(len(batch))
        return collator.get_original(texts)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "RS-MoE's texts are routed, written by experts and fused, so they have no one likelihood: "
            "take the task in its generate_until form"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("RS-MoE answers one instruction about an image and holds no conversation")

    def _image(self, instruction: str, arguments: dict, doc_to_visual: Any, doc_id: int, task: str, split: str) -> Any:
        images = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(images) != 1:
            raise RSMoEError(f"document {doc_id} of task {task} has {len(images)} images; RS-MoE reads one a request")
        return images[0]


def _generation_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Those of `generate`, and the stop strings. A temperature of 0 stands for a greedy search."""
    arguments = dict(arguments)
    until = arguments.pop("until", None) or []
    if temperature := arguments.pop("temperature", None):
        arguments = {"do_sample": True, "temperature": temperature} | arguments
    return arguments, [until] if isinstance(until, str) else until


def _before(until: list[str], text: str) -> str:
    for stop in filter(None, until):
        text = text.split(stop)[0]
    return text.strip()

"""Instructions that the model would read in part, or at positions that it has not learned, are refused in words."""

import copy

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.inference.context import ContextLengthError
from tests.tiny import tiny_config, tiny_model


POSITIONS, NEW = 300, 8


@pytest.fixture(scope="module")
def model():
    return tiny_model(config=tiny_config(text_config={"max_position_embeddings": POSITIONS}))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8))


def spelled(count: int) -> str:
    """An instruction of so many tokens of the base LM, and few of the Q-Former: one word."""
    return "x" * count


SYSTEMS = [
    ({"fusion": "rewrite"}, "full"),
    ({"fusion": "concat", "router_mode": "none"}, "full"),
    ({"fusion": "rewrite", "router_max_new_tokens": 150}, "full"),
    ({}, "base"),
]


@pytest.mark.parametrize(("settings", "system"), SYSTEMS, ids=str)
def test_the_longest_sequence_fits_the_base_lms_positions(model, processor, image, monkeypatch, settings, system):
    """No sequence of the longest instruction that is taken ends beyond the last position."""
    predictor = Predictor(model, processor, {"max_new_tokens": NEW, **settings}, system)
    with pytest.raises(
        ContextLengthError, match=rf"300 tokens, \d+ are the most .* reads {POSITIONS}: shorten"
    ) as told:
        predictor.check(spelled(POSITIONS))
    limit = int(str(told.value).split(" tokens, ")[1].split()[0])
    assert 40 < limit < POSITIONS - NEW
    assert predictor.check(spelled(limit)) == limit
    with pytest.raises(ContextLengthError):
        predictor.predict([image], spelled(limit + 1))
    lengths = []
    forward = model.model.language_model.forward

    def counting(**inputs):
        lengths.append(int(inputs["position_ids"].max()) + 1)
        return forward(**inputs)

    monkeypatch.setattr(model.model.language_model, "forward", counting)
    predictor.predict([image], spelled(limit))
    assert limit < max(lengths) <= POSITIONS


def test_the_q_former_reads_all_or_nothing(model, processor):
    processor = copy.deepcopy(processor)
    processor.qformer_tokenizer.model_max_length = 64
    predictor = Predictor(model, processor, {"max_new_tokens": NEW})
    assert predictor.check("a " * 62) == 124
    with pytest.raises(RSMoEError, match="65 tokens for the Q-Former, 64 are the most: shorten the instruction"):
        predictor.check("a " * 63)


def test_more_new_tokens_leave_less_room(model, processor):
    with pytest.raises(ContextLengthError, match="or lower max_new_tokens"):
        Predictor(model, processor, {"max_new_tokens": POSITIONS}).check("Describe the image.")


@pytest.mark.parametrize("forwards", [0, 1, 5, 30])
@pytest.mark.parametrize("system", ["full", "base"])
def test_once_nobody_waits_no_other_layer_runs(model, processor, image, forwards, system):
    """Whether the router writes, a prompt is read, or the text grows."""
    layers = model.model.language_model.layers
    ran: list[int] = []
    handles = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in layers]
    hooks = [len(layer._forward_pre_hooks) for layer in layers]
    try:
        predictor = Predictor(model, processor, {"max_new_tokens": 40}, system)
        assert len(predictor.predict([image], stop=lambda: len(ran) >= forwards)) == 1
    finally:
        for handle in handles:
            handle.remove()
    assert len(ran) == forwards
    assert [len(layer._forward_pre_hooks) for layer in layers] == hooks

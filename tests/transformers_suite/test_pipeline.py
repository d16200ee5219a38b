"""transformers' pipelines: what their tests of image-text-to-text and any-to-any ask of a model, in our words.

`PipelineTesterMixin` is in the source distribution, but neither the tests of the tasks (`tests/pipelines`) that it
calls nor the checkpoints that it fetches. Texts differ in length and rows in who reads them; weights are wide
(tests/tiny.py), so that padding that is read, or a row that another expert reads, changes what is said.
"""

import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines import any_to_any
from transformers.utils import is_torchvision_available

from modeling_rsmoe import RSMoEError

from ..tiny import tiny_checkpoint


TEXTS = [
    "Describe the image.",
    "Is there a road in this image, and if there is one, does it cross the river?",
    "Which objects?",
    "What?",
    "Where are the planes parked relative to the terminal?",
]
ADAPTERS = ["<theme> ", "", "<relation> ", "<object> ", "<router> theme: "]


def tile(seed: int) -> Image.Image:
    pixels = torch.randint(0, 255, (40, 50, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def chat(text: str, *seeds: int) -> list[dict]:
    images = [{"type": "image", "image": tile(seed)} for seed in seeds]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module", params=["image-text-to-text", "any-to-any"])
def pipe(request, tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("pipeline"))
    with pytest.MonkeyPatch.context() as patch:
        if not is_torchvision_available():  # any-to-any asks for it, our images do not need it
            patch.setattr(any_to_any, "requires_backends", lambda *_: None)
        yield pipeline(request.param, model=str(folder))


def said(pipe, chats: list, batch_size: int, **arguments) -> list[str]:
    """The new tokens of each chat, decoded with all special tokens."""
    outputs = pipe(chats, batch_size=batch_size, return_full_text=False, **arguments)
    return [output[0]["generated_text"] for output in outputs]


def test_one_image_and_a_text(pipe):
    (output,) = pipe(images=tile(0), text="<image> This is a ", max_new_tokens=5)
    assert output.keys() == {"input_text", "generated_text"}
    assert output["input_text"] == "<image> This is a " and output["generated_text"].startswith("<image> This is a ")
    assert len(output["generated_text"]) > len("<image> This is a ")


def test_batches_of_a_generator(pipe):
    """Ten items in batches of four, as transformers' `run_batch_test`."""
    example = {"images": tile(0), "text": "<image> Here I see a "}
    outputs = list(pipe((example for _ in range(10)), batch_size=4, max_new_tokens=5))
    assert len(outputs) == 10 and all(output == outputs[0] for output in outputs)


@pytest.mark.parametrize("fusion", ["rewrite", "concat"])
def test_full_model_in_batches(pipe, fusion):
    """Texts of different length say the same alone and in batches."""
    chats = [chat(text, seed) for seed, text in enumerate(TEXTS)]
    alone = said(pipe, chats, 1, generate_kwargs={"fusion": fusion})
    assert len(set(alone)) == len(chats)
    for batch_size in (2, 3):
        assert said(pipe, chats, batch_size, generate_kwargs={"fusion": fusion}) == alone


def test_rows_of_all_adapters_in_batches(pipe):
    """Base LM, router and experts, one text each: mixed in a batch they say what they say alone."""
    chats = [chat(adapter + text, seed) for seed, (adapter, text) in enumerate(zip(ADAPTERS, TEXTS))]
    arguments = {"processor_kwargs": {"expert_inputs": False}}
    alone = said(pipe, chats, 1, **arguments)
    assert len(set(alone)) == len(chats)
    for batch_size in (2, 3):
        assert said(pipe, chats, batch_size, **arguments) == alone


def test_several_images_in_one_message(pipe):
    """Refused in words; the base LM alone reads them all."""
    with pytest.raises(RSMoEError, match="one image each.*expert_inputs"):
        pipe(chat("Compare.", 0, 1), return_full_text=False)
    arguments = {"processor_kwargs": {"expert_inputs": False}}
    assert said(pipe, [chat("Compare.", 0, 1)], 1, **arguments) != said(pipe, [chat("Compare.", 0, 2)], 1, **arguments)

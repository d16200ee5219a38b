"""Images of several visitors: encoded once, described step by step, never mixed, stopped when nobody listens."""

import html
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration
from modeling_rsmoe.demo.images import MAX_PREVIEW_SIDE, EncodedImage, encode_upload
from modeling_rsmoe.inference import Checkpoint, Prediction, Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction
from tests.tiny import tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model() -> RSMoEForConditionalGeneration:
    return tiny_model(config=tiny_config(reranker_rank=8, reranker_buckets=64))


@pytest.fixture(scope="module")
def predictor(model: RSMoEForConditionalGeneration) -> Predictor:
    return Predictor(model, tiny_processor())


def noise(file: Path, seed: int, size: tuple[int, int] = (40, 50)) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file)
    return file


def stream(
    predictor: Predictor, image: EncodedImage, instruction: str = DEFAULT_INSTRUCTION, **generation: Any
) -> Generator[Prediction, None, None]:
    predictor = Predictor(predictor.model, predictor.processor, generation)
    return predictor.stream(instruction=instruction, image_embeds=image.embeds)


def text(*arguments: Any, **generation: Any) -> str:
    return list(stream(*arguments, **generation))[-1].text


def test_streamed_step_by_step_as_generate_says_it(predictor: Predictor, model: Any, tmp_path: Path) -> None:
    file, processor = noise(tmp_path / "a.png", 0), tiny_processor()
    for fusion in ("concat", "rewrite", "rerank"):
        inputs = processor(images=str(file), text="Describe the image.", return_tensors="pt")
        outputs = model.generate(**inputs, fusion=fusion, return_dict_in_generate=True)
        expected = processor.post_process_generation(outputs)[0]
        changes = list(stream(predictor, encode_upload(predictor, file), fusion=fusion))
        first, second = changes[:2]
        assert (first.router_prompts, first.expert_texts, first.text) == (expected["router_prompts"], {}, "")
        assert (second.expert_texts, second.text) == (expected["expert_texts"], "")
        assert changes[-1].record() == expected
        assert len(changes) > 3 if fusion == "rewrite" else len(changes) == 3  # the others come in one piece
        lengths = [len(change.text) for change in changes[:-1]]
        assert lengths == sorted(lengths)


def test_captions_are_reranked_and_answers_are_not(predictor: Predictor, model: Any, tmp_path: Path) -> None:
    """The page's texts are the Predictor's. An answer is rewritten even where "rerank" is chosen for captions."""
    pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
    from modeling_rsmoe.demo.page import _Events, make_page

    checkpoint = Checkpoint("tiny", model, tiny_processor(), Path())
    file, events = noise(tmp_path / "a.png", 0), _Events(checkpoint, [])
    question = question_instruction("Is there a road?")
    for fusion, fusion_of_answer in (("auto", "auto"), ("rerank", "rewrite")):
        *_, (*_, caption, _) = captions = list(events.open_file(str(file), "", "template", fusion))
        session = captions[0][1]
        (expected,) = Predictor(model, tiny_processor(), {"router_mode": "template"}).predict([file])
        assert expected.scores and html.escape(expected.text) in caption
        asked = list(events.ask("Is there a road?", session, "template", fusion))[-1][1]
        (entry,) = asked.answers
        answer = text(predictor, session.image, question, router_mode="template", fusion=fusion_of_answer)
        assert entry.prediction.text == answer and entry.is_complete and not entry.prediction.scores
    plain = Checkpoint("tiny", tiny_model(), tiny_processor(), Path())
    for shown, fusions in (
        (checkpoint, ["auto", "rewrite", "concat", "rerank", "sentences"]),
        (plain, ["auto", "rewrite", "concat"]),
    ):
        radios = {
            component["props"]["label"]: component["props"]
            for component in make_page(shown).config["components"]
            if component["type"] == "radio"
        }
        radio = radios["The text is made by"]
        assert radio["value"] == "auto" and [value for _, value in radio["choices"]] == fusions


def test_an_image_is_encoded_once(
    predictor: Predictor, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, encode = [], model.model.encode_image
    monkeypatch.setattr(model.model, "encode_image", lambda pixels: calls.append(pixels.shape) or encode(pixels))
    image = encode_upload(predictor, noise(tmp_path / "a.png", 0))
    answers = {
        text(predictor, image, question_instruction(question)) for question in ("Is there a road?", "How many?")
    }
    answers.add(text(predictor, image, router_mode="template"))
    assert calls == [torch.Size([1, 3, 28, 28])] and len(answers) == 3


def test_two_people_at_once_do_not_mix(predictor: Predictor, tmp_path: Path) -> None:
    images = [encode_upload(predictor, noise(tmp_path / f"{seed}.png", seed)) for seed in range(4)]
    alone = [text(predictor, image) for image in images]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, image=image: together.update({i: text(predictor, image)}))
        for i, image in enumerate(images)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [together[i] for i in range(4)] == alone and len(set(alone)) == 4


def test_who_leaves_stops_the_generation(
    predictor: Predictor, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, generate = [], model.generate

    def recorded(**arguments: Any) -> Any:
        length = 0  # of one that is ended before its text
        try:
            outputs = generate(**arguments)
            length = outputs.sequences.shape[1] - outputs.prompt_length
            return outputs
        finally:
            lengths.append(length)

    monkeypatch.setattr(model, "generate", recorded)
    image = encode_upload(predictor, noise(tmp_path / "a.png", 0))
    changes = stream(predictor, image, fusion="rewrite", min_new_tokens=300, max_new_tokens=300)
    next(changes)
    changes.close()
    assert text(predictor, image)
    end = time.monotonic() + 60
    while len(lengths) < 2 and time.monotonic() < end:  # the model serves both at a time
        time.sleep(0.01)
    assert len(lengths) == 2 and max(lengths) < 300


def test_an_error_of_generate_reaches_who_listens(predictor: Predictor, tmp_path: Path) -> None:
    image = encode_upload(predictor, noise(tmp_path / "a.png", 0))
    with pytest.raises(RSMoEError, match="Unknown fusion 'vote'"):
        list(stream(predictor, image, fusion="vote"))
    with pytest.raises(RSMoEError, match="holds <theme>, which only the model's own sequences may"):
        list(stream(predictor, image, "Is this <theme> yours?"))
    assert text(predictor, image)


def test_a_large_image_is_shown_small(predictor: Predictor, tmp_path: Path) -> None:
    image = encode_upload(predictor, noise(tmp_path / "large.png", 0, (300, 2 * MAX_PREVIEW_SIDE)))
    assert (
        image.size == (2 * MAX_PREVIEW_SIDE, 300)
        and image.preview.size == (MAX_PREVIEW_SIDE, 150)
        and image.name == "large.png"
    )


def test_files_that_are_no_images(predictor: Predictor, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tif"
    for content, message in [
        (b"no image", "^wrong.tif is not an image that can be read here"),
        (b"", "^wrong.tif is empty"),
        (b"II*\0" + bytes(40), "^wrong.tif"),
        (b"<VRTDataset rasterXSize='8' rasterYSize='8'></VRTDataset>", "^wrong.tif is not an image"),
    ]:
        wrong.write_bytes(content)
        with pytest.raises(RSMoEError, match=message) as caught:
            encode_upload(predictor, wrong)
        assert str(tmp_path) not in str(caught.value)


def test_geotiffs(predictor: Predictor, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    file = tmp_path / "scene.tif"
    values = np.random.default_rng(0).integers(0, 4000, (5, 90, 120)).astype(np.uint16)
    profile = {"driver": "GTiff", "height": 90, "width": 120, "count": 5, "dtype": "uint16"}
    with rasterio.open(
        file, "w", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6), **profile
    ) as f:
        f.write(values)
    with pytest.raises(RSMoEError, match="scene.tif has 5 bands"):
        encode_upload(predictor, file)
    images = [encode_upload(predictor, file, bands) for bands in ("4,3,2", "3, 2, 1")]
    assert all(image.size == (120, 90) for image in images)
    assert not torch.equal(images[0].embeds, images[1].embeds)
    with pytest.raises(RSMoEError, match="scene.tif"):
        encode_upload(predictor, file, "9,1,2")

"""Looking at images for several people: encoded once, told step by step, never mixed, stopped when nobody listens."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration
from modeling_rsmoe.demo.viewer import SHOWN, Encoded, Viewer
from modeling_rsmoe.prompting_rsmoe import question_instruction
from tests.tiny import tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model() -> RSMoEForConditionalGeneration:
    return tiny_model(config=tiny_config(reranker_rank=8, reranker_buckets=64))


@pytest.fixture(scope="module")
def viewer(model: RSMoEForConditionalGeneration) -> Viewer:
    return Viewer("tiny", model, tiny_processor())


def noise(file: Path, seed: int, size: tuple[int, int] = (40, 50)) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file)
    return file


def text(viewer: Viewer, image: Encoded, *arguments: Any, **generation: Any) -> str:
    return list(viewer.tell(image, *arguments, **generation))[-1].text


def test_told_step_by_step_as_generate_says_it(viewer: Viewer, model: Any, tmp_path: Path) -> None:
    file, processor = noise(tmp_path / "a.png", 0), tiny_processor()
    for fusion in ("concat", "rewrite", "rerank"):
        inputs = processor(images=str(file), text="Describe the image.", return_tensors="pt")
        outputs = model.generate(**inputs, fusion=fusion, return_dict_in_generate=True)
        expected = processor.post_process_generation(outputs)[0]
        told = list(viewer.tell(viewer.encode(file), fusion=fusion))
        assert [one.done for one in told] == [False] * (len(told) - 1) + [True]
        assert (told[0].router_prompts, told[0].parts, told[0].text) == (expected["router_prompts"], {}, "")
        assert (told[1].parts, told[1].text) == (expected["parts"], "")
        assert told[-1].text == expected["text"] and len(told) > 3
        lengths = [len(one.text) for one in told[:-1]]
        assert lengths == sorted(lengths)


def test_captions_are_chosen_and_questions_are_not(viewer: Viewer, model: Any, tmp_path: Path) -> None:
    """The page begins with the choice where there is a reranker; an answer is composed all the same."""
    pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
    from modeling_rsmoe.demo.page import _Steps

    assert viewer.chooses and not Viewer("tiny", tiny_model(), tiny_processor()).chooses
    looked = _Steps(viewer, []).look_at_file(str(noise(tmp_path / "a.png", 0)), "", "template", "rerank")
    session = next(looked)[1]
    asked = list(_Steps(viewer, []).ask("Is there a road?", session, "template", "rerank"))[-1][1]
    question = question_instruction("Is there a road?")
    answer = text(viewer, session.image, question, router_mode="template", fusion="rewrite")
    assert asked.answers[0][1].text == answer


def test_an_image_is_encoded_once(viewer: Viewer, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, encode = [], model.model.encode_image
    monkeypatch.setattr(model.model, "encode_image", lambda pixels: calls.append(pixels.shape) or encode(pixels))
    image = viewer.encode(noise(tmp_path / "a.png", 0))
    answers = {text(viewer, image, question_instruction(question)) for question in ("Is there a road?", "How many?")}
    answers.add(text(viewer, image, router_mode="template"))
    assert calls == [torch.Size([1, 3, 28, 28])] and len(answers) == 3


def test_two_people_at_once_do_not_mix(viewer: Viewer, tmp_path: Path) -> None:
    images = [viewer.encode(noise(tmp_path / f"{seed}.png", seed)) for seed in range(4)]
    alone = [text(viewer, image) for image in images]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, image=image: together.update({i: text(viewer, image)}))
        for i, image in enumerate(images)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [together[i] for i in range(4)] == alone and len(set(alone)) == 4


def test_who_leaves_stops_the_generation(
    viewer: Viewer, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, generate = [], model.generate

    def recorded(**arguments: Any) -> Any:
        outputs = generate(**arguments)
        made.append(outputs.sequences.shape[1] - outputs.prompt_length)
        return outputs

    monkeypatch.setattr(model, "generate", recorded)
    image = viewer.encode(noise(tmp_path / "a.png", 0))
    telling = viewer.tell(image, fusion="rewrite", min_new_tokens=300, max_new_tokens=300)
    next(telling)
    telling.close()
    assert text(viewer, image)  # the model is free again
    assert len(made) == 2 and made[0] < 300


def test_an_error_of_generate_reaches_who_listens(viewer: Viewer, tmp_path: Path) -> None:
    image = viewer.encode(noise(tmp_path / "a.png", 0))
    with pytest.raises(RSMoEError, match="Unknown fusion 'vote'"):
        list(viewer.tell(image, fusion="vote"))
    with pytest.raises(RSMoEError, match="holds <theme>, which only the model's own rows may"):
        list(viewer.tell(image, "Is this <theme> yours?"))
    assert text(viewer, image)


def test_a_large_picture_is_kept_small(viewer: Viewer, tmp_path: Path) -> None:
    image = viewer.encode(noise(tmp_path / "large.png", 0, (300, 2 * SHOWN)))
    assert image.size == (2 * SHOWN, 300) and image.picture.size == (SHOWN, 150) and image.name == "large.png"


def test_files_that_are_no_images(viewer: Viewer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tif"
    for content, message in [
        (b"no image", "^wrong.tif is not an image that Pillow can read"),
        (b"", "^wrong.tif is empty"),
        (b"II*\0" + bytes(40), "^wrong.tif"),
        (b"<VRTDataset rasterXSize='8' rasterYSize='8'></VRTDataset>", "^wrong.tif is not an image"),
    ]:
        wrong.write_bytes(content)
        with pytest.raises(RSMoEError, match=message) as caught:
            viewer.encode(wrong)
        assert str(tmp_path) not in str(caught.value)


def test_geotiffs(viewer: Viewer, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    file = tmp_path / "scene.tif"
    values = np.random.default_rng(0).integers(0, 4000, (5, 90, 120)).astype(np.uint16)
    profile = {"driver": "GTiff", "height": 90, "width": 120, "count": 5, "dtype": "uint16"}
    with rasterio.open(
        file, "w", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6), **profile
    ) as f:
        f.write(values)
    with pytest.raises(RSMoEError, match="scene.tif has 5 bands"):
        viewer.encode(file)
    images = [viewer.encode(file, bands) for bands in ("4,3,2", "3, 2, 1")]
    assert all(image.size == (120, 90) for image in images)
    assert not torch.equal(images[0].embeds, images[1].embeds)
    with pytest.raises(RSMoEError, match="scene.tif"):
        viewer.encode(file, "9,1,2")

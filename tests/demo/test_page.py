"""The page in a real browser, as people use it. The model is tiny and random, the page's server is in this process."""

import html
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rsmoe.demo.images import encode_upload
from modeling_rsmoe.inference import Checkpoint, GenerationSettings, Prediction, Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION, question_instruction
from tests.browser import WAIT, Person, chromium, needs_chromium
from tests.tiny import INSTRUCTIONS, speaking_model, tiny_processor


pytestmark = [pytest.mark.browser, needs_chromium]
WELCOME = "Drop an image or a GeoTIFF, or choose an example."


def image(file: Path, seed: int, side: int = 48) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [image(folder / f"{seed}.png", seed) for seed in range(4)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    model = speaking_model()
    model.generation_config.fusion = "concat"  # of images and questions the texts differ; random rewrites may not
    return Checkpoint("tiny", model, tiny_processor(), Path())


@pytest.fixture(scope="module")
def home(checkpoint: Checkpoint, images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
        from modeling_rsmoe.demo.page import launch, make_page

        page = make_page(checkpoint, images[2:])
        url, public = launch(page, "127.0.0.1", upload_limit=1)
        assert public is None
        yield url
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def person(browser: Any, home: str) -> Iterator[Person]:
    someone = Person(browser, home)
    yield someone
    someone.context.close()


def drop(person: Person, file: Path) -> None:
    person.page.locator("#file input[type=file]").set_input_files(str(file))


def caption(person: Person) -> Any:
    return person.page.locator("#caption .rsmoe-prediction[aria-busy=false]")


def answer(person: Person, question: str) -> Any:
    """The section of a question's answer, once it is whole."""
    person.page.get_by_label("Question about this image").fill(question)
    person.page.get_by_role("button", name="Ask").click()
    return person.page.locator("#answers .rsmoe-prediction[aria-busy=false]").filter(has_text=question)


def predict(
    checkpoint: Checkpoint, file: Path, question: str | None = None, bands: str = "", **settings: Any
) -> Prediction:
    """What the page should show."""
    predictor = Predictor(checkpoint.model, checkpoint.processor, GenerationSettings(**settings))
    embeds = encode_upload(predictor, file, bands).embeds
    (prediction,) = predictor.predict(
        None, question_instruction(question) if question else DEFAULT_INSTRUCTION, image_embeds=embeds
    )
    return prediction


def words(text: str) -> str:
    """As a browser shows it: runs of white space are one space."""
    return " ".join(text.split())


def test_caption_and_questions(person: Person, checkpoint: Checkpoint, images: list[Path]) -> None:
    page, expected = person.page, predict(checkpoint, images[0])
    page.get_by_text(WELCOME).wait_for()
    drop(person, images[0])
    caption(person).wait_for()
    assert words(caption(person).locator(".rsmoe-text").inner_text()) == words(expected.text)
    steps = caption(person).locator(".rsmoe-expert")
    assert steps.locator("h4").all_inner_texts() == ["theme", "object", "relation"]
    for kind, texts in (("router-prompt", expected.router_prompts), ("expert-text", expected.expert_texts)):
        shown = steps.locator(f".rsmoe-{kind}").all_text_contents()
        assert [words(one) for one in shown] == [words(text) for text in texts.values()]
    colors = steps.locator("h4").evaluate_all("all => all.map(one => getComputedStyle(one).color)")
    assert len(set(colors)) == 3
    preview = page.locator("#image img")
    assert preview.evaluate("one => [one.naturalWidth, one.naturalHeight]") == [48, 48]
    assert "0.png, 48 x 48 pixels" in page.locator("#image").inner_text()
    # two questions, the last one first; neither a question nor an answer is taken for HTML or a template
    attack = "<img src=x onerror=alert(1)> ${7*7} {{7*7}} ?"
    for question in ("Is there a road?", attack):
        one = answer(person, question).locator(".rsmoe-text")
        one.wait_for()
        assert words(one.inner_text()) == words(predict(checkpoint, images[0], question).text)
    assert page.locator("#answers h3").all_inner_texts() == [attack, "Is there a road?"]
    assert page.locator("#answers img").count() == 0
    assert page.get_by_label("Question about this image").input_value() == ""
    # another image: its caption, and no answers to what was asked about the last one
    page.locator("#examples button").nth(1).click()
    page.get_by_text("3.png, 48 x 48 pixels").wait_for()
    caption(person).filter(has_text=words(predict(checkpoint, images[3]).text)).wait_for()
    assert page.locator("#answers .rsmoe-prediction").count() == 0
    assert person.foreign == [] and person.problems == []


def test_switches(person: Person, checkpoint: Checkpoint, images: list[Path]) -> None:
    drop(person, images[0])
    caption(person).wait_for()
    person.page.get_by_label("fixed prompts").check()
    caption(person).filter(has_text=INSTRUCTIONS["theme"]).wait_for()
    expected = predict(checkpoint, images[0], router_mode="template", fusion="rewrite").text
    person.page.get_by_label("the base LM, which reads the expert texts").check()
    caption(person).filter(has_text=words(expected)).wait_for()
    one = answer(person, "Is there a road?").locator(".rsmoe-text")
    one.wait_for()
    settings = {"router_mode": "template", "fusion": "rewrite"}
    assert words(one.inner_text()) == words(predict(checkpoint, images[0], "Is there a road?", **settings).text)


def test_details(person: Person, checkpoint: Checkpoint, images: list[Path]) -> None:
    """Each sentence with its writer; and back to a caption."""
    drop(person, images[0])
    caption(person).wait_for()
    predictor = Predictor(checkpoint.model, checkpoint.processor)
    (expected,) = predictor.predict([images[0]], DETAIL_INSTRUCTION)
    person.page.get_by_label("Describe in detail").check()
    sentences = caption(person).locator(".rsmoe-sentence")
    sentences.first.wait_for()
    assert [words(one) for one in sentences.all_inner_texts()] == [
        words(f"{sentence['text']} {sentence['writer']}") for sentence in expected.sentences
    ]
    person.page.get_by_label("Describe in detail").uncheck()
    caption(person).filter(has_text="Caption").wait_for()
    assert person.problems == []


def test_what_cannot_be_read_is_reported(person: Person, images: list[Path], tmp_path: Path) -> None:
    page, alert = person.page, person.page.get_by_role("alert")
    answer(person, "Is there a road?")
    alert.filter(has_text="first choose an image").wait_for()
    drop(person, images[0])
    caption(person).wait_for()
    assert alert.count() == 0
    answer(person, "Is this <theme> yours?")
    alert.filter(has_text="holds <theme>, which only the model's own sequences may: leave it out").wait_for()
    page.locator("#file").get_by_label("Clear").click()
    page.get_by_text(WELCOME).wait_for()
    assert page.locator("#image img").count() == 0 and alert.count() == 0
    (tmp_path / "text.tif").write_text("no image")
    drop(person, tmp_path / "text.tif")
    alert.filter(has_text="text.tif is not an image that can be read here: give one of PNG, JPEG, TIFF").wait_for()
    assert "Traceback" not in page.content() and str(tmp_path) not in page.content()
    answer(person, "Is there a road?")
    alert.filter(has_text="first choose an image").wait_for()


def test_a_file_over_the_limit_is_refused(person: Person, tmp_path: Path) -> None:
    drop(person, image(tmp_path / "large.png", 0, 800))  # 1.9 MB
    person.page.get_by_text("exceed").wait_for()
    assert person.page.locator("#image img").count() == 0


def test_geotiff(person: Person, checkpoint: Checkpoint, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason='no rasterio here: pip install "rsmoe[geo]"')
    file = tmp_path / "scene.tif"
    values = np.random.default_rng(5).integers(0, 4000, (4, 90, 120)).astype(np.uint16)
    profile = {
        "driver": "GTiff",
        "height": 90,
        "width": 120,
        "count": 4,
        "dtype": "uint16",
        "photometric": "minisblack",
    }
    with rasterio.open(
        file, "w", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6), **profile
    ) as f:
        f.colorinterp = [rasterio.enums.ColorInterp.undefined] * 4
        f.write(values)
    drop(person, file)
    person.page.get_by_role("alert").filter(has_text="scene.tif has 4 bands").wait_for()
    field = person.page.get_by_label("Bands of a GeoTIFF (--bands)")
    field.fill("4,3,2")
    field.press("Enter")
    caption(person).filter(has_text=words(predict(checkpoint, file, bands="4,3,2").text)).wait_for()
    person.page.get_by_text("scene.tif, 120 x 90 pixels").wait_for()


def test_two_people_at_once(browser: Any, home: str, checkpoint: Checkpoint, images: list[Path]) -> None:
    """Both drop and ask before either has an answer: each gets what belongs to their own image."""
    people = [Person(browser, home) for _ in range(2)]
    questions = ("Is there a road?", "How many planes?")
    for someone, file in zip(people, images, strict=False):
        drop(someone, file)
    sections = []
    for someone, file in zip(people, images, strict=False):
        caption(someone).filter(has_text=words(predict(checkpoint, file).text)).wait_for()
    for question in questions:
        sections += [
            (file, question, answer(someone, question)) for someone, file in zip(people, images, strict=False)
        ]
        for file, asked, section in sections[-2:]:
            section.wait_for()
            assert words(section.locator(".rsmoe-text").inner_text()) == words(predict(checkpoint, file, asked).text)
    texts = {predict(checkpoint, file, question).text for file in images[:2] for question in questions}
    assert len(texts) == 4
    for someone in people:
        assert someone.page.locator("#answers h3").all_inner_texts() == list(questions[::-1])
        someone.context.close()


def test_who_leaves_does_not_hold_the_model(
    browser: Any, home: str, checkpoint: Checkpoint, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, stream = threading.Event(), Predictor.stream
    slow = encode_upload(Predictor(checkpoint.model, checkpoint.processor), images[0]).embeds

    def endless(self: Predictor, *arguments: Any, image_embeds: torch.Tensor, **more: Any) -> Iterator[Prediction]:
        if torch.equal(image_embeds, slow):
            self.generation |= {"fusion": "rewrite", "min_new_tokens": 440, "max_new_tokens": 440}
        with closing(stream(self, *arguments, image_embeds=image_embeds, **more)) as predictions:
            for prediction in predictions:
                started.set()
                yield prediction

    monkeypatch.setattr(Predictor, "stream", endless)
    leaving, staying = Person(browser, home), Person(browser, home)
    drop(leaving, images[0])
    for _ in range(WAIT // 50):  # not `wait`: the watch on requests works in this thread
        if started.is_set():
            break
        leaving.page.wait_for_timeout(50)
    assert started.is_set()
    leaving.context.close()
    drop(staying, images[1])
    caption(staying).filter(has_text=words(predict(checkpoint, images[1]).text)).wait_for()
    staying.context.close()


def test_a_session_is_a_value(checkpoint: Checkpoint, images: list[Path]) -> None:
    predictor = Predictor(checkpoint.model, checkpoint.processor)
    pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
    from modeling_rsmoe.demo.page import Session

    session = Session(encode_upload(predictor, images[0]))
    with pytest.raises(AttributeError):
        session.image = encode_upload(predictor, images[1])


def test_who_is_faster_than_the_page_gets_a_caption(checkpoint: Checkpoint, images: list[Path]) -> None:
    """Its fields have no values yet: the file is read as it is, by the checkpoint's settings."""
    pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
    from modeling_rsmoe.demo.page import _Events

    events = _Events(checkpoint, [])
    *_, (_, _, _, shown, _) = events.open_file(str(images[0]), None, None, None, None)  # type: ignore[arg-type]
    assert words(predict(checkpoint, images[0]).text) in words(re.sub("<[^>]*>", " ", html.unescape(shown)))
    ((problem, *_),) = events.ask(None, None, None, None)  # type: ignore[arg-type]
    assert "first choose an image" in str(problem)

"""The same image and instruction give the same text at every door: no door has a fusion of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.inference import GenerationSettings, Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION, question_instruction
from modeling_rsmoe.utils.images import read_image
from tests.cli.test_cli import errors, run


MAX_NEW_TOKENS = 8
SHORT = ("--max-new-tokens", MAX_NEW_TOKENS)
SETTINGS = GenerationSettings(max_new_tokens=MAX_NEW_TOKENS)
QUESTION = "Is there a road?"


pytestmark = pytest.mark.usefixtures("without_java")


@pytest.fixture(scope="module", params=["with a reranker", pytest.param("without", marks=pytest.mark.slow)])
def checkpoint(request: pytest.FixtureRequest, shared_checkpoint: Callable[..., Path]) -> Path:
    reranker = {"reranker_rank": 8, "reranker_buckets": 64} if request.param == "with a reranker" else {}
    return shared_checkpoint(**reranker)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    files = [folder / f"{number}.png" for number in range(3)]
    for file in files:
        Image.fromarray(random.integers(0, 256, (30, 30, 3), np.uint8)).save(file)
    return files


def load(checkpoint: Path) -> tuple[RSMoEForConditionalGeneration, RSMoEProcessor]:
    return RSMoEForConditionalGeneration.from_pretrained(checkpoint), RSMoEProcessor.from_pretrained(checkpoint)


def by_generate(checkpoint: Path, images: list[Path], instruction: str, **options: str) -> list[str]:
    """What Python says: `generate` with the processor's inputs, all other doors must say the same."""
    model, processor = load(checkpoint)
    pixels = [read_image(image) for image in images]
    inputs = processor(images=pixels, text=[instruction] * len(images), return_tensors="pt")
    arguments = {"max_new_tokens": MAX_NEW_TOKENS, "return_dict_in_generate": True, **options}
    outputs = model.generate(**inputs, **arguments)
    return [result["text"] for result in processor.post_process_generation(outputs)]


# ---- doors: a checkpoint, images and a folder to write to -> captions of the default instruction


def by_predictor(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    return [prediction.text for prediction in Predictor(*load(checkpoint), SETTINGS).predict(images)]


def by_features(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    predictor = Predictor(*load(checkpoint), SETTINGS)
    return [prediction.text for prediction in predictor.predict(image_embeds=predictor.encode(images))]


def by_stream(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    predictor = Predictor(*load(checkpoint), SETTINGS)
    return [list(predictor.stream(image))[-1].text for image in images]


def by_caption(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    return printed("caption", *images, "--model", checkpoint)


def by_collection(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    parquet = pytest.importorskip("pyarrow.parquet")
    output = folder / "captions.parquet"
    result = run("caption", images[0].parent, "--output", output, "--model", checkpoint, *SHORT)
    assert result.exit_code == 0, result.stderr
    captions = {row["image"]: row["caption"] for row in parquet.read_table(output).to_pylist()}
    return [captions[image.name] for image in images]


def by_evaluation(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    data_folder(folder, images)
    output = folder / "report.json"
    result = run("evaluate", checkpoint, "--data", folder, "--task", "captioning", "--output", output, *SHORT)
    assert result.exit_code == 0, result.stderr
    lines = map(json.loads, (folder / "report.jsonl").read_text().splitlines())
    captions = {Path(line["image"]).name: line["caption"] for line in lines if "caption" in line}
    return [captions[image.name] for image in images]


def by_scene(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    """Scenes of one tile, from Python."""
    pytest.importorskip("rasterio")
    from modeling_rsmoe.scenes.pipeline import describe_scene

    predictor = Predictor(*load(checkpoint), SETTINGS)
    return [describe_scene(tiff(image, folder), predictor).text for image in images]


def by_caption_of_scene(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    pytest.importorskip("rasterio")
    files = [tiff(image, folder) for image in images]
    result = run("caption", *files, "--tile", 64, "--model", checkpoint, "--json", *SHORT)
    assert result.exit_code == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    return [line["caption"] for line in lines if "tiles" in line]


def by_pipeline(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    """transformers' own, with chat messages."""
    model, processor = load(checkpoint)
    describe = pipeline("image-text-to-text", model=model, processor=processor)
    texts = []
    for image in images:
        content = [{"type": "image", "url": str(image)}, {"type": "text", "text": DEFAULT_INSTRUCTION}]
        chat = [{"role": "user", "content": content}]
        (result,) = describe(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": MAX_NEW_TOKENS})
        texts.append(result["generated_text"].strip())
    return texts


def by_server(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    pytest.importorskip("fastapi")
    from tests.serving.conftest import serving

    with serving(checkpoint=load(checkpoint)) as served:
        answers = [served.ask(Image.open(image), DEFAULT_INSTRUCTION, max_tokens=MAX_NEW_TOKENS) for image in images]
        return [answer.choices[0].message.content for answer in answers]


def by_demo(checkpoint: Path, images: list[Path], folder: Path) -> list[str]:
    """An upload is encoded once, and its features are described."""
    from modeling_rsmoe.demo.images import encode_upload

    predictor = Predictor(*load(checkpoint), SETTINGS)
    uploads = [encode_upload(predictor, image) for image in images]
    return [list(predictor.stream(image_embeds=upload.embeds))[-1].text for upload in uploads]


CAPTION_DOORS = [by_predictor, by_features, by_stream, by_pipeline, by_caption, by_collection]
CAPTION_DOORS += [by_evaluation, by_scene, by_caption_of_scene, by_server, by_demo]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, images: list[Path]) -> list[str]:
    """Captions that every door must give."""
    return by_generate(checkpoint, images, DEFAULT_INSTRUCTION)


@pytest.mark.parametrize("door", CAPTION_DOORS, ids=lambda door: door.__name__)
def test_captions(
    door: Callable[[Path, list[Path], Path], list[str]],
    checkpoint: Path,
    images: list[Path],
    expected: list[str],
    tmp_path: Path,
) -> None:
    assert door(checkpoint, images, tmp_path) == expected


@pytest.mark.slow
def test_answers(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    expected = by_generate(checkpoint, images, question_instruction(QUESTION))
    asked = [printed("ask", image, QUESTION, "--model", checkpoint, name="answer") for image in images]
    assert sum(asked, []) == expected
    pytest.importorskip("pyarrow")
    features = tmp_path / "features.parquet"
    result = run(
        "encode", *images, "--engine", "local", "--dtype", "float32", "--model", checkpoint, "--output", features
    )
    assert result.exit_code == 0, result.stderr
    assert printed("ask", features, QUESTION, "--model", checkpoint, name="answer") == expected
    pytest.importorskip("rasterio")
    from modeling_rsmoe.scenes.pipeline import describe_scene

    predictor = Predictor(*load(checkpoint), SETTINGS)
    scenes = [describe_scene(tiff(image, tmp_path), predictor, question=QUESTION) for image in images]
    assert [scene.tiles[0].text for scene in scenes] == expected


def test_details(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    """By the instruction everywhere; --detail is that instruction. Each sentence has its writer."""
    model, processor = load(checkpoint)
    expected = Predictor(model, processor, SETTINGS).predict(images, DETAIL_INSTRUCTION)
    texts = [prediction.text for prediction in expected]
    assert texts == by_generate(checkpoint, images, DETAIL_INSTRUCTION)
    result = run("caption", *images, "--detail", "--json", "--model", checkpoint, *SHORT)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["caption"] for line in lines] == texts
    assert [line["sentences"] for line in lines] == [prediction.sentences for prediction in expected]
    assert all(prediction.sentences for prediction in expected)

    shown = run("caption", images[0], "--detail", "--model", checkpoint, *SHORT).stdout
    assert all(sentence["writer"] in shown for sentence in expected[0].sentences)

    describe = pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "url": str(images[0])}, {"type": "text", "text": DETAIL_INSTRUCTION}]
    chat = [{"role": "user", "content": content}]
    (found,) = describe(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": MAX_NEW_TOKENS})
    assert found["generated_text"].strip() == texts[0]

    data_folder(tmp_path, images)
    output = tmp_path / "report.json"
    result = run("evaluate", checkpoint, "--data", tmp_path, "--detail", "--output", output, *SHORT)
    assert result.exit_code == 0, result.stderr
    settings, *lines = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    assert [line["caption"] for line in lines if "caption" in line] == texts
    assert all(line["sentences"] for line in lines if "caption" in line)
    has_reranker = model.model.reranker is not None
    assert settings["settings"]["fusion"] == ("sentences" if has_reranker else "concat")
    assert settings["settings"]["instruction"] == DETAIL_INSTRUCTION

    pytest.importorskip("rasterio")
    output = tmp_path / "tiles.geojson"
    scene = tiff(images[0], tmp_path)
    result = run("caption", scene, "--tile", 64, "--detail", "--output", output, "--model", checkpoint, *SHORT)
    assert result.exit_code == 0, result.stderr
    (tile,) = json.loads(output.read_text())["features"]
    assert tile["properties"]["caption"] == texts[0].replace("\0", "\ufffd")
    assert tile["properties"]["sentences"].startswith(f"[{expected[0].sentences[0]['writer']}] ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detail", "--instruction", "Describe it."], "--detail or --instruction, not both"),
        (["--detail", "--change"], "--change compares captions of one sentence"),
    ],
)
def test_details_that_cannot_be(options: list[str], message: str) -> None:
    (line,) = errors(run("caption", "a.tif", "b.tif", *options))
    assert message in line


def test_details_are_of_captions(tmp_path: Path) -> None:
    for options in (["--task", "vqa", "x"], ["--baseline", "constant"]):
        (line,) = errors(run("evaluate", "--data", tmp_path, "--output", tmp_path / "r.json", "--detail", *options))
        assert "--detail asks a MODEL for paragraphs" in line


def test_an_option_is_obeyed(checkpoint: Path, images: list[Path], expected: list[str]) -> None:
    joined = by_generate(checkpoint, images, DEFAULT_INSTRUCTION, fusion="concat")
    assert printed("caption", *images, "--model", checkpoint, "--fusion", "concat") == joined
    assert joined != expected


def test_reranking_needs_a_reranker(images: list[Path], shared_checkpoint: Callable[..., Path]) -> None:
    (line,) = errors(run("caption", images[0], "--model", shared_checkpoint(), "--fusion", "rerank"))
    assert "needs a reranker" in line and "rsmoe train reranker" in line


# ---- helpers


def printed(*arguments: object, name: str = "caption") -> list[str]:
    """The texts that a command prints."""
    result = run(*arguments, "--json", *SHORT)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line)[name] for line in result.stdout.splitlines()]


def data_folder(folder: Path, images: list[Path]) -> None:
    entry = {"dataset": "Tiny", "split": "test", "captions": ["a river .", "a road ."]}
    lines = [json.dumps({**entry, "image": image.name}) for image in images]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    for image in images:
        (folder / image.name).symlink_to(image)


def tiff(image: Path, folder: Path) -> Path:
    """The image as a GeoTIFF of 8 bits, which a scene takes as it is."""
    from tests.scenes.rasters import UTM, write_raster

    pixels = np.asarray(Image.open(image)).transpose(2, 0, 1)
    return write_raster(folder / f"{image.stem}.tif", pixels, photometric="rgb", **UTM)

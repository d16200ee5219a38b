"""Tiles through a predictor: what it sees, what is skipped, and how a stopped run continues."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference import Prediction, Predictor
from modeling_rsmoe.inference.resume import KeyedLog
from modeling_rsmoe.scenes.describe import Tile, TileDescriber, read_side, tile_log
from modeling_rsmoe.scenes.grid import Grid
from modeling_rsmoe.utils.rasters.raster import open_raster
from tests.scenes.rasters import write_raster


class Brightness:
    """A predictor that describes an image by its mean value, and may stop after some batches."""

    image_side = 16

    def __init__(self, stops_after: int | None = None):
        self.stops_after, self.batches = stops_after, []  # type: ignore[var-annotated]

    def predict(self, images: Sequence[Image.Image], instruction: str) -> list[Prediction]:
        if len(self.batches) == self.stops_after:
            raise KeyboardInterrupt
        self.batches.append([image.size for image in images])
        texts = [f"{np.asarray(image).mean():.2f}" for image in images]
        return [Prediction(text, {"theme": "?"}, {"theme": text}) for text in texts]


def scene(path: Path, empty: int = 0) -> Path:
    """5 x 5 tiles of 20 px, each of its own value; the first `empty` ones are no data."""
    values = np.arange(1, 26, dtype="uint8").reshape(5, 5).repeat(20, 0).repeat(20, 1)[None] * 10
    values.reshape(5, 20, 5, 20).swapaxes(1, 2).reshape(25, 20, 20)[:0]
    for number in range(empty):
        row, column = divmod(number, 5)
        values[0, row * 20 : row * 20 + 20, column * 20 : column * 20 + 20] = 0
    return write_raster(path, values, nodata=0)


def run(path: Path, predictor: Any, log: KeyedLog, **options: Any) -> list[Tile]:
    with open_raster(path) as raster:
        describer = TileDescriber(predictor, "Describe the image.", log, **options)
        return describer.describe(raster, Grid(raster.width, raster.height, 20))


def test_every_tile_is_described_in_order(tmp_path: Path) -> None:
    predictor, told = Brightness(), []
    tiles = run(
        scene(tmp_path / "a.tif"),
        predictor,
        tile_log(None, {}),
        batch_size=8,
        progress=lambda message, *counts: told.append(counts),
    )
    assert [tile.number for tile in tiles] == list(range(25))
    assert [float(tile.text) for tile in tiles] == [10.0 * number for number in range(1, 26)]
    assert [len(batch) for batch in predictor.batches] == [8, 8, 8, 1]
    assert told == [(done, 25, "tiles") for done in (0, 8, 16, 24, 25)]
    assert tiles[7].window == (40, 20, 20, 20) and tiles[7].valid == 1


def test_tiles_that_are_mostly_no_data_are_skipped(tmp_path: Path) -> None:
    predictor, log = Brightness(), tile_log(None, {})
    tiles = run(scene(tmp_path / "a.tif", empty=13), predictor, log, batch_size=4)
    assert [tile.number for tile in tiles] == list(range(13, 25))
    assert [len(batch) for batch in predictor.batches] == [4, 4, 4], "empty tiles take no place in a batch"
    name = str(tmp_path / "a.tif")
    assert log.lines[name, 3] == {"scene": name, "tile": 3, "valid": 0.0}


def test_a_scene_with_little_data_everywhere(tmp_path: Path) -> None:
    """Where no tile is half full, those with at least half as much as the best are described; a stopped run too."""
    values = np.zeros((1, 40, 60), "uint8")
    values[:, ::2, 0:60:4] = 9  # an eighth
    values[:, :20, :20] = 0
    values[:, 3, 3] = 9  # a little
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    tiles = run(path, Brightness(), tile_log(None, {}), batch_size=2)
    assert [tile.number for tile in tiles] == [1, 2, 3, 4, 5] and {tile.valid for tile in tiles} == {0.125}
    with pytest.raises(KeyboardInterrupt):
        run(path, Brightness(stops_after=1), tile_log(tmp_path / "o", {}), batch_size=2)
    second = Brightness()
    assert run(path, second, tile_log(tmp_path / "o", {}), batch_size=2) == tiles
    assert [len(batch) for batch in second.batches] == [2, 1], "what was done is not done again"


def test_large_tiles_are_read_no_larger_than_the_model_can_use(tmp_path: Path) -> None:
    assert [read_side(side, 224) for side in (100, 512, 895, 896, 1024, 2048, 12000)] == [
        100,
        512,
        895,
        448,
        512,
        512,
        750,
    ]
    predictor = Brightness()
    with open_raster(scene(tmp_path / "a.tif")) as raster:
        TileDescriber(predictor, "", tile_log(None, {})).describe(raster, Grid(100, 100, 100))
    assert predictor.batches == [[(50, 50)]]


def test_a_stopped_run_continues(tmp_path: Path) -> None:
    path, output = scene(tmp_path / "a.tif", empty=2), tmp_path / "out.jsonl"
    whole = run(path, Brightness(), tile_log(None, {}), batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        run(path, Brightness(stops_after=3), tile_log(output, {"tile": 20}), batch_size=4)
    partial = tmp_path / "out.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + 2 + 12
    with partial.open("a") as file:
        file.write('{"scene": 0, "tile": 14, "te')  # killed in the middle of a line
    second, told = Brightness(), []
    log = tile_log(output, {"tile": 20})
    tiles = run(path, second, log, batch_size=5, progress=lambda message, done, *rest: told.append(done))
    assert tiles == whole and told[0] == 14 and sum(map(len, second.batches)) == 11
    log.remove()
    assert not partial.exists() and not output.exists()


def test_other_settings_do_not_continue(tmp_path: Path) -> None:
    output = tmp_path / "out.geojson"
    tile_log(output, {"tile": 512, "model": "a"}).add([{"scene": "a", "tile": 0}])
    assert tile_log(output, {"model": "a", "tile": 512}).lines == {("a", 0): {"scene": "a", "tile": 0}}
    with pytest.raises(RSMoEError, match=r"out.geojson.partial is a run with other settings \(tile: 512, now 256\)"):
        tile_log(output, {"tile": 256, "model": "a"})
    with pytest.raises(RSMoEError, match=r"\(num_beams: null, now 3\)"):
        tile_log(output, {"tile": 512, "model": "a", "num_beams": 3})
    for content in ("hello\n", "[]\n", '{"settings": {}}\n{"scene": 0}\n', "\xff\n", '{"settings": {}}\n[1]\n'):
        (tmp_path / "out.geojson.partial").write_text(content)
        with pytest.raises(
            RSMoEError,
            match="geojson.partial:?[12]? is no (unfinished run of this program; delete it|line of this kind)",
        ):
            tile_log(output, {"tile": 512})
    (tmp_path / "out.geojson.partial").write_text('{"settings"')  # killed before anything was done
    assert tile_log(output, {"tile": 512}).lines == {}


def test_work_lines_are_json(tmp_path: Path) -> None:
    run(scene(tmp_path / "a.tif"), Brightness(), tile_log(tmp_path / "o", {"a": [1, (2, 3)]}))
    head, *lines = map(json.loads, (tmp_path / "o.partial").read_text().splitlines())
    assert head == {"settings": {"a": [1, [2, 3]]}} and len(lines) == 25
    assert set(lines[0]) == {"scene", "tile", "valid", "text", "router_prompts", "expert_texts"}


def test_the_model_encodes_each_tile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sequences of a tile (router, experts, rewriting) share one pass through the image encoder."""
    from tests.tiny import tiny_model, tiny_processor

    model, processor, batches = tiny_model(), tiny_processor(), []
    encode = model.encode_image

    def counted(pixel_values: Any) -> Any:
        batches.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(model, "encode_image", counted)
    predictor = Predictor(model, processor, {"fusion": "rewrite"})
    assert predictor.image_side == 28
    images = [Image.new("RGB", (30, 30), (shade, 0, 0)) for shade in (0, 120, 240)]
    predictions = predictor.predict(images, "Describe the image.")
    assert (
        batches == [3]
        and [set(one.record()) for one in predictions] == [{"text", "router_prompts", "expert_texts"}] * 3
    )


def test_the_base_lm_reads_expert_texts_as_in_generate() -> None:
    """The sequence that sums up a scene is that of one image's expert texts in `generate`, token by token."""
    from modeling_rsmoe.generation_rsmoe import fill_slots
    from modeling_rsmoe.prompting_rsmoe import Prompt
    from tests.tiny import tiny_model, tiny_processor

    model, processor = tiny_model(), tiny_processor()
    expert_texts = {"theme": "a harbor", "object": "", "relation": "ships at a pier"}
    image = Image.new("RGB", (30, 30), (90, 0, 0))
    generated = processor(images=[image], text=["Describe it."], return_tensors="pt")
    ids = [processor.tokenizer(f" {text}" if text else "")["input_ids"] for text in expert_texts.values()]
    mask = generated["rewrite_attention_mask"][0].bool()
    expected = fill_slots(generated["rewrite_input_ids"][0][mask].tolist(), model.config.prompt_token_id, ids)
    prompt = processor(images=[image], text=[Prompt.rewrite("Describe it.", expert_texts)], return_tensors="pt")
    assert prompt["input_ids"].tolist() == [expected]
    assert prompt["qformer_input_ids"].tolist() == generated["qformer_input_ids"].tolist()
    assert Predictor(model, processor, {"router_mode": "none"}).rewrite(image, "Describe it.", expert_texts)


def test_a_score_is_kept_with_its_tile(tmp_path: Path) -> None:
    class Reranked(Brightness):
        def predict(self, images: Sequence[Image.Image], instruction: str) -> list[Prediction]:
            found = super().predict(images, instruction)
            return [replace(one, scores={"reranker": float(one.text) / 1000}) for one in found]

    path, log = scene(tmp_path / "a.tif", empty=2), tile_log(tmp_path / "out.jsonl", {})
    told: list[Tile] = []
    tiles = run(path, Reranked(), log, on_tile=lambda raster, tile: told.append(tile))
    assert [tile.score for tile in tiles] == [number / 100 for number in range(3, 26)] and told == tiles
    again = run(path, Brightness(stops_after=0), tile_log(tmp_path / "out.jsonl", {}))
    assert again == tiles, "read from the log"
    assert run(path, Brightness(), tile_log(None, {}))[0].score is None

"""Collections described in this process: every input has its row, whatever happens. The model is tiny and random."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from modeling_rsmoe.collection import images as images_module
from modeling_rsmoe.collection import store, worker
from modeling_rsmoe.collection.describers import Captioner, CheckpointSource, FeatureEncoder
from modeling_rsmoe.collection.engines import LocalEngine
from modeling_rsmoe.collection.features import FeatureFile
from modeling_rsmoe.collection.images import CollectionImage, find_images
from modeling_rsmoe.collection.pipeline import _shards, describe_collection
from modeling_rsmoe.collection.worker import Shard, write_shard
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import GenerationSettings

from .conftest import NAMES


def rows_of(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist()


def shards_of(output: Path) -> list[str]:
    return sorted(file.name for file in output.with_name(f"{output.name}.shards").glob("shard-*.parquet"))


class Stopped(BaseException):
    """As Ctrl-C or a death would: nothing catches it."""


def stop_after(number: int) -> Any:
    def progress(message: str, done: float, total: float, unit: str) -> None:
        if done >= number:
            raise Stopped

    return progress


def test_captions(captioner: Captioner, tiles: Path, tmp_path: Path) -> None:
    output, told = tmp_path / "out.parquet", []
    images = find_images([str(tiles)])
    made = describe_collection(captioner, images, output, LocalEngine(), 2, lambda *progress: told.append(progress))
    assert (made.num_rows, made.num_errors, made.num_described, made.num_repeated) == (11, 1, 11, 0)
    assert told == [("captions of 11 images", done, 11, "images") for done in (0, 2, 4, 6, 8, 10, 11)]
    assert made.rate is not None and made.rate > 0
    rows = rows_of(output)
    assert [row["image"] for row in rows] == NAMES
    for row in rows:
        assert (row["model"], row["revision"]) == ("tiny", "abc")
        assert row["sha256"] == hashlib.sha256((tiles / row["image"]).read_bytes()).hexdigest()
        if row["image"] == "bad.png":
            assert "bad.png is not an image" in row["error"]
            assert not any(row[name] for name in ("caption", "expert_texts", "router_prompts", "width"))
        else:
            assert row["error"] is None and (row["width"], row["height"]) == (40, 30)
            assert (
                list(row["expert_texts"]) == ["theme", "object", "relation"]
                and row["router_prompts"]["theme"] == "theme?"
            )
    good = [row for row in rows if row["error"] is None]
    assert len({row["caption"] for row in good}) == len(good)
    # what the model says to each image alone
    one = captioner.describe([Image.open(tiles / "d/3.png").convert("RGB")])[0]
    assert {name: rows[NAMES.index("d/3.png")][name] for name in one} == one
    assert json.loads(pq.read_schema(output).metadata[store.METADATA])["settings"] == captioner.settings
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_stopped_run_continues(captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    images = find_images([str(tiles)])
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    describe_collection(captioner, images, whole, LocalEngine(), 3)
    with pytest.raises(Stopped):
        describe_collection(captioner, images[:8], output, LocalEngine(), 2, stop_after(4))
    assert len(shards_of(output)) == 2 and not output.exists()
    # stopped again, while a shard is written, with more images and another batch size
    written = worker.open_writer

    def die(file: Path, schema: Any) -> Any:
        if "shard-001-0000001" in file.name:
            raise Stopped
        return written(file, schema)

    monkeypatch.setattr(worker, "open_writer", die)
    with pytest.raises(Stopped):
        describe_collection(captioner, images, output, LocalEngine(), 3)
    monkeypatch.undo()
    shards = shards_of(output)
    assert len(shards) == 3
    (output.with_name("out.parquet.shards") / shards[0]).write_bytes(b"damaged by the disk")
    # one that has a row is no longer asked for, another is asked for twice
    asked = [images[-1], *images[1:], images[2]]
    seen: list[str] = []
    read = images_module.read_source
    monkeypatch.setattr(images_module, "read_source", lambda path: seen.append(Path(path).name) or read(path))
    made = describe_collection(captioner, asked, output, LocalEngine(), 2)
    assert made.num_described == len(seen) == 5  # 10 images; 7 had rows, of which those of the first two are damaged
    rows, expected = rows_of(output), {row["image"]: row for row in rows_of(whole)}
    assert [row["image"] for row in rows] == [image.name for image in asked]
    assert all(row == expected[row["image"]] for row in rows)


def test_a_row_belongs_to_the_content_of_its_file(captioner: Captioner, tiles: Path, tmp_path: Path) -> None:
    """Of a stopped run: one image is another now, one was none and is one now, one is gone. Stopped once more."""
    copy = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    (copy / "d/1.png").rename(tmp_path / "later.png")
    images, output = find_images([str(copy)]), tmp_path / "out.parquet"
    images.append(CollectionImage("d/1.png", str(copy / "d/1.png")))
    with pytest.raises(Stopped):
        describe_collection(captioner, images, output, LocalEngine(), 2, stop_after(11))
    shutil.copy(copy / "a.png", copy / "c.tif")
    shutil.copy(copy / "a.png", copy / "bad.png")
    (tmp_path / "later.png").rename(copy / "d/1.png")
    (copy / "d/0.png").unlink()
    with pytest.raises(Stopped):
        describe_collection(captioner, images, output, LocalEngine(), 1, stop_after(9))
    made = describe_collection(captioner, images, output, LocalEngine(), 2)
    assert (made.num_rows, made.num_errors, made.num_described) == (11, 0, 2)
    rows = {row["image"]: row for row in rows_of(output)}
    expected = captioner.describe([Image.open(copy / name).convert("RGB") for name in ("a.png", "d/1.png")])
    for name, text in (("c.tif", expected[0]), ("bad.png", expected[0]), ("d/1.png", expected[1])):
        assert rows[name]["caption"] == text["caption"]
        assert rows[name]["sha256"] == hashlib.sha256((copy / name).read_bytes()).hexdigest()
    assert rows["d/0.png"]["caption"]  # described while it was there


def test_what_a_run_refuses(captioner: Captioner, encoder: FeatureEncoder, tiles: Path, tmp_path: Path) -> None:
    images, output = find_images([str(tiles)]), tmp_path / "out.parquet"
    with pytest.raises(Stopped):
        describe_collection(captioner, images, output, LocalEngine(), 2, stop_after(2))
    other = Captioner(
        captioner.checkpoint,
        "Count the ships.",
        GenerationSettings(router_mode="template", fusion="concat", max_new_tokens=5),
    )
    message = "instruction was Describe the image., is Count the ships.; generation was .*8.*, is .*5"
    for describer, told in ((other, message), (encoder, "kind was captions, is features")):
        with pytest.raises(RSMoEError, match=f"begun with other settings .{told}"):
            describe_collection(describer, images, output, LocalEngine(), 2)
    with store.Store(output, captioner.kind, captioner.settings):
        with pytest.raises(RSMoEError, match="being written by process"):
            describe_collection(captioner, images, output, LocalEngine(), 2)
    (tmp_path / "out.parquet.shards" / "manifest.json").write_text("[]")
    with pytest.raises(RSMoEError, match="manifest.json cannot be read .* to start again"):
        describe_collection(captioner, images, output, LocalEngine(), 2)
    shutil.rmtree(tmp_path / "out.parquet.shards")
    output.write_text("hours of work")
    with pytest.raises(RSMoEError, match="out.parquet exists: give --output another name, or --overwrite"):
        describe_collection(captioner, images, output, LocalEngine(), 2)
    assert output.read_text() == "hours of work"


def test_a_full_disk_leaves_what_was_made(captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    images, output = find_images([str(tiles)]), tmp_path / "out.parquet"
    written, number = worker.open_writer, [0]

    def full(file: Path, schema: Any) -> Any:
        number[0] += 1
        if number[0] == 3:
            raise OSError(28, "No space left on device")
        return written(file, schema)

    monkeypatch.setattr(worker, "open_writer", full)
    with pytest.raises(OSError, match="No space left"):
        describe_collection(captioner, images, output, LocalEngine(), 2)
    assert len(shards_of(output)) == 2
    number[0] = 2
    monkeypatch.setattr(worker, "open_writer", written)
    monkeypatch.setattr(store, "open_writer", full)
    with pytest.raises(OSError, match="No space left"):  # while the output is put together
        describe_collection(captioner, images, output, LocalEngine(), 2)
    monkeypatch.undo()
    assert not output.exists()
    assert (
        describe_collection(captioner, images, output, LocalEngine(), 2).num_described == 0
        and len(rows_of(output)) == 11
    )


def test_an_image_that_ends_its_worker(captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    """It costs its own row, and a worker that ends once while it describes another image costs none."""
    images = find_images([str(tiles)])[:3]
    read, deaths = images_module.read_source, []

    def deadly(path: str) -> Any:
        if path.endswith("b/1.png") or (path.endswith("a.png") and len(deaths) == 1):
            deaths.append(Path(path).name)
            raise Stopped
        return read(path)

    monkeypatch.setattr(images_module, "read_source", deadly)
    shard = Shard("shard-000-0000000.parquet", images)
    for _ in range(4):
        with pytest.raises(Stopped):
            write_shard(captioner, tmp_path, shard, 8)
    assert write_shard(captioner, tmp_path, shard, 8) == (shard.name, 3, 5)
    assert deaths == ["1.png", "a.png", "1.png", "1.png"]
    message = "2 workers ended while they described it: try the file by itself"
    assert [row["error"] for row in rows_of(tmp_path / shard.name)] == [None, message, None]
    assert [file.name for file in tmp_path.iterdir()] == [shard.name]


def test_a_batch_too_large_for_the_gpu(captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    images = find_images([str(tiles)])[:3]
    describe, sizes = Captioner.describe, []

    def small(self: Captioner, images: Any) -> Any:
        sizes.append(len(images))
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return describe(self, images)

    monkeypatch.setattr(Captioner, "describe", small)
    limit = 1
    write_shard(captioner, tmp_path, Shard("a.parquet", images), 8)
    assert sizes == [3, 1, 2, 1, 1] and all(row["caption"] for row in rows_of(tmp_path / "a.parquet"))
    limit = 0
    with pytest.raises(RSMoEError, match="does not suffice for one image"):
        write_shard(captioner, tmp_path, Shard("b.parquet", images), 8)


def test_urls(captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    content = (tiles / "a.png").read_bytes()

    def download(url: str) -> bytes:
        if "lost" in url:
            raise RSMoEError(f"{url} cannot be downloaded (404): check the URL and the network")
        return content if url.endswith("a.png") else b"<html>"

    monkeypatch.setattr("modeling_rsmoe.utils.images.download", download)
    names = ["https://host/a.png", "https://host/lost.png", "https://host/page"]
    describe_collection(captioner, find_images(names), tmp_path / "out.parquet", LocalEngine(), 4)
    first, second, third = rows_of(tmp_path / "out.parquet")
    assert first["sha256"] == hashlib.sha256(content).hexdigest() and first["caption"] and first["image"] == names[0]
    assert "404" in second["error"] and "https://host/page is not an image" in third["error"]


def test_features(encoder: FeatureEncoder, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    """They are what the model's `encode_image` gives, in one file and in a folder of several."""
    images = find_images([str(tiles)])
    monkeypatch.setattr(store, "_ROW_GROUP_BYTES", 500)
    monkeypatch.setattr(store, "_FILE_BYTES", 1500)
    describe_collection(encoder, images, tmp_path / "f.parquet", LocalEngine(), 2)
    describe_collection(encoder, images, tmp_path / "folder", LocalEngine(), 4)
    assert len(list((tmp_path / "folder").iterdir())) > 1
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.schema.field("features").type == pa.fixed_shape_tensor(pa.float16(), (5, 16))
    assert set(table["encoder_sha256"].to_pylist()) == {encoder.encoder_sha256}
    assert encoder._loaded is not None
    vit, processor = encoder._loaded
    for path in (tmp_path / "f.parquet", tmp_path / "folder"):
        file = FeatureFile(path)
        assert (file.num_images, file.num_errors, file.encoder_sha256) == (10, 1, encoder.encoder_sha256)
        batches = list(file.batches(3))
        assert [name for batch in batches for name in batch.images] == [name for name in NAMES if name != "bad.png"]
        for batch in batches:
            images = [Image.open(tiles / name).convert("RGB") for name in batch.images]
            pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
            assert batch.image_embeds.dtype == torch.float16
            expected = vit.encode_image(pixels)
            assert torch.allclose(batch.image_embeds.float(), expected, atol=2e-3) and expected.abs().max() > 1


def test_features_that_float16_cannot_hold(encoder: FeatureEncoder, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    encoder.open()
    found = np.zeros((2, 5, 16), np.float32)
    found[1, 2, 3] = 1e6
    monkeypatch.setattr(FeatureEncoder, "_encode", lambda self, images: found[: len(images)])
    describe_collection(encoder, find_images([str(tiles)])[:2], tmp_path / "f.parquet", LocalEngine(), 2)
    message = "its features are not finite in float16: keep them in float32"
    assert [row["error"] for row in rows_of(tmp_path / "f.parquet")] == [None, message]


def test_files_that_hold_no_features(captioner: Captioner, tiles: Path, tmp_path: Path) -> None:
    describe_collection(captioner, find_images([str(tiles)])[:1], tmp_path / "captions.parquet", LocalEngine(), 2)
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "empty").mkdir()
    for name in ("captions.parquet", "text.parquet", "other.parquet", "empty"):
        with pytest.raises(RSMoEError, match="holds no features of images"):
            FeatureFile(tmp_path / name)
    with pytest.raises(RSMoEError, match="there is no file"):
        FeatureFile(tmp_path / "lost.parquet")


def test_a_worker_with_another_checkpoint(captioner: Captioner) -> None:
    here = captioner.checkpoint
    other = Captioner(
        CheckpointSource(here.name, "abc", "0" * 64, here.find, here.load), "Describe the image.", GenerationSettings()
    )
    with pytest.raises(RSMoEError, match="is not the one that the run was started with"):
        other.open(check=True)


def test_sizes_of_shards() -> None:
    """Small collections move the bar, large ones make no more files than needed; batches stay whole."""
    for images, batch_size, size in ((10, 8, 8), (2_000, 8, 24), (100_000, 8, 64), (100_000, 48, 48), (5, 100, 100)):
        shards = _shards([CollectionImage(str(number), "") for number in range(images)], batch_size, 3)
        assert {len(shard.items) for shard in shards[:-1]} <= {size} and sum(
            len(shard.items) for shard in shards
        ) == images
        assert len({shard.name for shard in shards}) == len(shards) and shards[0].name == "shard-003-0000000.parquet"

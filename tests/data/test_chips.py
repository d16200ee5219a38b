"""Chips of 16 bits, floats and many bands among one's own images: a data folder has them as plain RGB images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.data.chips import find_chips
from modeling_rsmoe.data.records import read_captions
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.training.finetune import plan
from modeling_rsmoe.utils.images import is_chip, read_image
from modeling_rsmoe.utils.rasters.image import measure_stretch
from modeling_rsmoe.utils.rasters.options import RasterOptions
from tests.cli.test_data import error, run
from tests.scenes.rasters import noise, write_raster

from .published import image


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve chips of 4 x uint16 and two ordinary images, with a caption each."""
    folder = tmp_path / "chips"
    folder.mkdir()
    for number in range(12):
        high = 1000 + 200 * number
        write_raster(folder / f"{number:02}.tif", noise(4, 24, 24, high=high, seed=number), photometric="minisblack")
    image(folder / "plain.png", 24)
    image(folder / "plain.tif", 24)
    lines = [{"file_name": file.name, "text": "a harbor with many boats ."} for file in sorted(folder.iterdir())]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def pixels(file: Path, **options) -> np.ndarray:
    return np.asarray(read_image(file, raster_options=RasterOptions(**options)))


@pytest.mark.slow
def test_chips_become_what_the_model_sees(source: Path, checkpoint: Path, tmp_path: Path, without_java) -> None:
    out = tmp_path / "data"
    result = run("data", "convert", "own", source, out, "--bands", "3,2,1", "--link")
    assert result.exit_code == 0, result.stderr
    assert "of 14 images 12 are chips, written as RGB PNGs of 8 bits (--bands 3,2,1)" in " ".join(
        result.stderr.split()
    )
    written = out / "images/chips"
    chips = sorted(written.glob("*.tif.png"))
    assert len(chips) == 12 and len(list(written.iterdir())) == 14
    for file in chips:
        with Image.open(file) as opened:
            assert (opened.format, opened.mode) == ("PNG", "RGB")
        assert np.array_equal(pixels(file), pixels(source / file.stem, bands=(3, 2, 1)))
    for name in ("plain.png", "plain.tif"):
        assert (written / name).samefile(source / name), "ordinary images keep their bytes"
    assert {record.image.name for record in read_captions(out)} == {file.name for file in written.iterdir()}

    assert plan(out, tmp_path / "trained", checkpoint).train_images > 0
    report = tmp_path / "report.json"
    scored = run("evaluate", checkpoint, "--data", out, "--output", report, "--max-new-tokens", 4)
    assert scored.exit_code == 0 and report.is_file(), scored.stderr


def test_a_choice_of_bands_is_asked_for(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    commands = (
        ("data", "convert", "own", source, out),
        ("train", source, "--output", out, "--model", checkpoint),
        ("evaluate", checkpoint, "--data", source, "--output", out),
    )
    for command in commands:
        message = error(run(*command))
        assert "tif has 4 bands" in message and "rsmoe data convert own ... --bands 4,3,2" in message
        assert "12 of 14 images cannot be read" in message or command[0] == "evaluate"
        assert not out.exists()


def test_nodata_and_one_stretch_for_all(source: Path, tmp_path: Path) -> None:
    own, out = ("data", "convert", "own", source), tmp_path / "out"
    options = ("--bands", "2", "--nodata", "7", "--stretch", "collection")
    assert run(*own, out, *options, "--split", "train").exit_code == 0
    chosen = RasterOptions((2,), 7.0)
    stretch = measure_stretch([str(file) for file in sorted(source.glob("[0-9]*.tif"))], chosen)
    written = sorted((out / "images/chips").glob("*.tif.png"))
    assert stretch is not None and written
    for file in written:
        assert np.array_equal(pixels(file), pixels(source / file.stem, bands=(2,), nodata=7.0, stretch=stretch))
    assert run(*own, out, "--bands", "2").exit_code == 0, "another choice"
    assert all(np.array_equal(pixels(file), pixels(source / file.stem, bands=(2,))) for file in written)


def test_a_border_is_told(tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    for number in range(3):
        values = (noise(3, 40, 40, seed=number) / 8000).astype("float32")
        values[:, :10] = -9999
        write_raster(source / f"{number}.tif", values)
    (source / "a.csv").write_text("image,caption\n" + "".join(f"{number}.tif,a field .\n" for number in range(3)))
    said = " ".join(run("data", "convert", "own", source, tmp_path / "out").stderr.split())
    assert "of 3 images 3 are chips, written as RGB PNGs of 8 bits (each as its file says)" in said
    assert "holds -9999 in 25% of its pixels" in said and "2 more such notes" in said
    written = tmp_path / "out/images/own/0.tif.png"
    assert np.array_equal(pixels(written), pixels(source / "0.tif")) and not pixels(written)[:10].any()


def test_what_is_a_chip(tmp_path: Path) -> None:
    Image.fromarray(noise(1, 20, 20)[0]).save(tmp_path / "gray16.png")
    Image.fromarray(noise(1, 20, 20, "uint8", 255)[0]).save(tmp_path / "gray.png")
    write_raster(tmp_path / "rgbn.tif", noise(4, 20, 20, "uint8", 255), photometric="rgb")
    write_raster(tmp_path / "many.tif", noise(13, 20, 20, "uint8", 255))
    (tmp_path / "text.tif").write_text("no image")
    found = {file.name for file in tmp_path.iterdir() if is_chip(file)}
    assert found == {"gray16.png", "many.tif"}, "Pillow shows red, green and blue of rgbn.tif"
    assert is_chip(tmp_path / "rgbn.tif", RasterOptions(bands=(4, 1, 2)))
    assert not is_chip(tmp_path / "text.tif", RasterOptions(bands=(4, 1, 2)))


def test_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RSMoEError, match=r"^--bands 3,2,1 --stretch image: this is for chips .*; leave it out"):
        find_chips([source / "plain.png", source / "plain.tif"], RasterOptions((3, 2, 1)), "image")
    message = error(run("data", "convert", "rsicd", source, tmp_path / "out", "--bands", "3,2,1"))
    assert message == "--bands, --nodata and --stretch are for NAME own; RSICD has no chips"
    image(source / "00.tif.png")
    with (source / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "00.tif.png", "text": "a quay ."}')
    message = error(run("data", "convert", "own", source, tmp_path / "out", "--bands", "3,2,1"))
    assert "a chip would become 00.tif.png, as another image is called; rename one of them" in message
    assert not (tmp_path / "out").exists()

"""Radar rasters of two bands as red, green and blue: in decibels, with the ratio of the bands."""

from pathlib import Path

import numpy as np
import pytest

from modeling_rsmoe.scenes.grid import Window
from modeling_rsmoe.scenes.raster import open_raster
from modeling_rsmoe.utils.rasters.radar import find_pair, polarization
from tests.scenes.rasters import UTM, write_raster


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VV", "vv"),
        ("Gamma0_VH", "vh"),
        ("Sigma0_HV_db", "hv"),
        ("s1a-iw-grd-hh-2024", "hh"),
        ("VV/VH", None),
        ("savvy", None),
        ("", None),
    ],
)
def test_names_of_polarizations(name: str, expected: str | None) -> None:
    assert polarization(name) == expected


def test_which_bands_are_a_pair() -> None:
    assert find_pair(["VV", "VH", "angle"]) == (0, 1) and find_pair(["HV", "HH"]) == (1, 0)
    assert find_pair(["HH", "HV", "VH", "VV"]) == (3, 2)
    assert find_pair(["VV", "VV", "VH"]) is find_pair(["VV", "HV"]) is find_pair(["", ""]) is None


def power(seed: int = 0) -> np.ndarray:
    """Linear power of two bands: speckle over a scene of -20 to 0 dB, and a bright target; the border is zero."""
    random = np.random.default_rng(seed)
    scene = 10 ** np.linspace(-2, 0, 60)[None, :] * np.array([1.0, 0.2])[:, None, None]
    values = (scene * random.gamma(4, 0.25, (2, 50, 60))).astype("float32")
    values[:, 20, 20] = 300
    values[:, :, :5] = 0
    return values


def stretched(bands: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """By the 2nd and 98th percentile of each band's valid values."""
    colors = np.zeros(bands.shape)
    for color, band, is_data in zip(colors, bands, valid, strict=True):
        low, high = np.percentile(band[is_data], (2, 98))
        color[is_data] = ((band[is_data] - low) / (high - low) * 255).clip(0, 255)
    return np.moveaxis(colors, 0, -1)


def test_linear_power_is_shown_in_decibels_with_its_ratio(tmp_path: Path) -> None:
    values = power()
    path = write_raster(tmp_path / "a.tif", values[::-1], ["Gamma0_VH", "Gamma0_VV"], **UTM)
    with open_raster(path) as raster:
        shown = raster.read()
        part = raster.read(Window(10, 10, 20, 20))
    assert raster.bands == (2, 1)
    assert raster.notes == [
        f"{path} is shown as Gamma0_VV in red, Gamma0_VH in green and their ratio in blue, in decibels"
    ]
    assert (shown.valid == (values[0] > 0)).all(), "zero power has no decibels"
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(values)
        bands = np.concatenate([decibels, decibels[:1] - decibels[1:]])
    expected = stretched(bands, np.broadcast_to(shown.valid, bands.shape))
    assert np.abs(np.asarray(shown.image) - expected).max() <= 1
    assert part.image == shown.image.crop((10, 10, 30, 30))


def test_decibels_stay_and_their_ratio_is_a_difference(tmp_path: Path) -> None:
    decibels = np.random.default_rng(0).normal([[[-10.0]], [[-16.0]]], 3, (2, 40, 40)).astype("float32")
    with open_raster(write_raster(tmp_path / "a.tif", decibels, ["VV", "VH"])) as raster:
        shown = np.asarray(raster.read().image)
    assert raster.notes[-1].endswith("their ratio in blue")
    bands = np.concatenate([decibels, decibels[:1] - decibels[1:]])
    assert np.abs(shown - stretched(bands, np.ones(bands.shape, bool))).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integers_stay_and_are_divided(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, (2, 40, 40)).astype(dtype)
    with open_raster(write_raster(tmp_path / "a.tif", values), bands=(1, 2)) as raster:  # no names: they were chosen
        shown = np.asarray(raster.read().image)
    valid = np.ones((3, 40, 40), bool)
    valid[2] = values[1] > 0  # nothing is divided by zero
    ratio = values[0] / np.maximum(values[1], 1, dtype=np.float32)
    assert np.abs(shown - stretched(np.stack([*values.astype("float32"), ratio]), valid)).max() <= 1


def test_one_polarization_is_gray_in_decibels(tmp_path: Path) -> None:
    values = power()[:1]
    with open_raster(write_raster(tmp_path / "a.tif", values, ["VV"])) as raster:
        shown = np.asarray(raster.read().image)
    assert raster.notes[-1].endswith("a.tif is shown as VV, in decibels")
    with np.errstate(divide="ignore"):
        expected = stretched(10 * np.log10(values), values > 0)
    assert np.abs(shown - expected).max() <= 1
    with open_raster(write_raster(tmp_path / "b.tif", values, ["elevation"])) as raster:
        assert not any("decibels" in note for note in raster.notes), "other floats are taken as they are"

"""Pages: values are escaped, colours can be read and told apart, by the colour-blind too."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from modeling_rsmoe.utils.html import COLORS, data_url, render
from modeling_rsmoe.utils.images import read_image


# Linear RGB as it is seen with the given deficiency in full (Machado, Oliveira and Fernandes, 2009).
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# What stands behind the texts: light and dark grounds of the pages and of Gradio's.
GROUNDS = (("#ffffff", "#f7f7f5"), ("#1f2226", "#16181b", "#27272a"))


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    darker, lighter = sorted(float(XYZ[1] @ linear(color)) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def lab(seen: np.ndarray) -> np.ndarray:
    ratio = XYZ @ seen.clip(0, 1) / XYZ.sum(axis=1)
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colors_can_be_read_and_told_apart(mode: int, sight: str) -> None:
    colors = [pair[mode] for pair in COLORS]
    assert all(contrast(color, ground) >= 4.5 for color in colors for ground in GROUNDS[mode])
    places = [lab(np.array(SIGHT[sight]) @ linear(color)) for color in colors]
    apart = {pair: float(np.linalg.norm(places[pair[0]] - places[pair[1]])) for pair in combinations(range(6), 2)}
    assert min(apart.values()) >= 15  # in CIELAB, where 2.3 is just noticeable
    assert min(apart[pair] for pair in combinations(range(3), 2)) >= 40  # theme, object, relation


def test_values_are_escaped_and_none_may_lack(tmp_path: Path) -> None:
    template = tmp_path / "page.html"
    template.write_text("<p title='{{ text }}'>{{ text }}</p>{{ colors | length }}")
    attack = "</p><script>'{{ 7 * 7 }}"
    assert render(template, text=attack) == (
        "<p title='{0}'>{0}</p>6".format("&lt;/p&gt;&lt;script&gt;&#39;{{ 7 * 7 }}")
    )
    with pytest.raises(UndefinedError, match="'text' is undefined"):
        render(template)


def test_picture_inside_a_url() -> None:
    picture = Image.new("RGB", (40, 30), (200, 90, 20))
    again = read_image(data_url(picture))
    assert again.size == (40, 30) and np.abs(np.asarray(again, int) - (200, 90, 20)).max() <= 3

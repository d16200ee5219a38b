"""The plot of a bench."""

from PIL import Image

from modeling_rsmoe.bench.names import BASE, FULL, TEMPLATE
from modeling_rsmoe.bench.plots import _points, plot

from .results import made_results


def test_a_panel_for_each_curve(tmp_path):
    results, file = made_results(), tmp_path / "bench.png"
    assert plot(results, file) and list(tmp_path.iterdir()) == [file]
    with Image.open(file) as whole:
        assert whole.format == "PNG" and whole.width > 1000
        assert whole.getpixel((0, 0))[3] == 0  # for any page, light or dark
        high = whole.height
    del results["sections"]["growth"]
    assert plot(results, file)
    with Image.open(file) as fewer:
        assert fewer.height < high


def test_the_same_results_make_the_same_drawing(tmp_path):
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    assert all(plot(made_results(), file) for file in files)
    assert files[0].read_bytes() == files[1].read_bytes() and b"<svg" in files[0].read_bytes()


def test_nothing_measured_nothing_drawn(tmp_path):
    results = made_results()
    results["sections"] = {}
    assert not plot(results, tmp_path / "bench.png") and list(tmp_path.iterdir()) == []


def test_points_of_curves():
    results = made_results()
    experts = _points(results, "growth: experts")
    assert [x for x, _ in experts[FULL]] == list(range(1, 9)) and [x for x, _ in experts[BASE]] == [0]
    images = _points(results, "images")
    assert {name: [x for x, _ in points] for name, points in images.items()} == dict.fromkeys(
        (BASE, FULL, TEMPLATE), [1, 8]
    )

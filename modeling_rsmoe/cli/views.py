"""What `--map` and `--figure` show of images and scenes: views, kept small until all of them are written."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..scenes.grid import Grid
from ..utils.files import check_outputs, disk_errors
from . import terminal


if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Prediction
    from ..scenes.outputs import Result
    from ..scenes.view import View
    from ..utils.rasters.raster import Raster

_FEW = 4  # views, whose images may be large
_SMALL_SIDE = 768  # pixels of the images of more views

MapOption = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="Write an HTML page: outlined tiles, a click shows their texts, a search finds them. It needs no "
        "network.",
        show_default=False,
    ),
]
FigureOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a PNG: each image with its texts beside it.", show_default=False),
]


class Views:
    """Collects views if a page or figure of them is to be written, and writes those."""

    def __init__(self, page: Path | None, figure: Path | None, overwrite: bool):
        self._page, self._figure = page, figure
        self._is_needed = page is not None or figure is not None
        self._views: list[View] = []
        self._side = 0
        for option, file, suffixes in (("--map", page, (".html", ".htm")), ("--figure", figure, (".png",))):
            if file is not None and file.suffix.lower() not in suffixes:
                raise RSMoEError(f"{option} {file} does not end in {suffixes[0]}: give it that name")
        check_outputs(page, figure, overwrite=overwrite)

    def expect(self, num_images: int, rasters: "Sequence[Raster]", sizes: tuple[int, int]) -> None:
        """Check, before the model is loaded, that what will come can be shown."""
        if not self._is_needed:
            return
        from ..scenes.figure import check_figure
        from ..scenes.map import SIDE, check_map

        num_views = num_images + len(rasters)
        if self._page is not None:
            num_tiles = sum(len(Grid(raster.width, raster.height, *sizes)) for raster in rasters)
            check_map(num_views, num_images + num_tiles)
        if self._figure is not None:
            check_figure(num_views)
        self._side = SIDE if num_views <= _FEW else _SMALL_SIDE

    def add_image(
        self, name: str, image: "Image.Image", prediction: "Prediction", instruction: str, model: str
    ) -> None:
        """Add the view of an image; arguments as of `view_image`."""
        if self._is_needed:
            from ..scenes.view import view_image

            self._views.append(view_image(name, image, prediction, instruction, model, self._side))

    def add_scenes(self, results: "Sequence[Result]", steps: terminal.Steps) -> None:
        """Add the views of scenes; their rasters are read again."""
        if self._is_needed:
            from ..scenes.change_result import ChangeResult
            from ..scenes.view import view_change, view_scene

            for result in results:
                steps(f"drawing {result.raster.name}")
                if isinstance(result, ChangeResult):
                    self._views.append(view_change(result, self._side))
                else:
                    self._views.append(view_scene(result, self._side))

    def write(self, as_json: bool, steps: terminal.Steps) -> None:
        """Write the page and the figure, and print their names."""
        if not self._is_needed:
            return
        from ..scenes.figure import write_figure
        from ..scenes.map import write_map

        for file, write_file in ((self._page, write_map), (self._figure, write_figure)):
            if file is None:
                continue
            steps(f"writing {file}")
            with disk_errors("cannot write", f"Free some space, or give {file.name} another place."):
                write_file(self._views, file)
            if not as_json:
                steps.print(terminal.printable(f"{file} ({file.stat().st_size / 1e6:.1f} MB)"))

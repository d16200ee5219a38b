"""What `--map` and `--picture` take of images and scenes: sheets, kept small until all of them are written."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_outputs
from . import terminal


if TYPE_CHECKING:
    from ..scenes.outputs import SceneResult
    from ..scenes.raster import Raster
    from ..scenes.sheet import Sheet

_FEW = 4  # sheets, whose pictures may be large
_SMALL_SIDE = 768  # pixels of the pictures of more sheets

MapOption = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="Write an HTML page to look at: outlined tiles, a click shows their texts, a search finds them. It needs "
        "no network.",
        show_default=False,
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a PNG: each image with its texts set beside it.", show_default=False),
]


class Sheets:
    """Collects sheets if a page or picture of them is asked for, and writes those."""

    def __init__(self, page: Path | None, picture: Path | None, overwrite: bool):
        self._page, self._picture = page, picture
        self._sheets: list[Sheet] = []
        self._side = 0
        for option, file, suffixes in (("--map", page, (".html", ".htm")), ("--picture", picture, (".png",))):
            if file is None:
                continue
            if file.suffix.lower() not in suffixes:
                raise RSMoEError(f"{option} {file} does not end in {suffixes[0]}: give it that name")
            if file.exists() and not overwrite:
                raise RSMoEError(f"{file} exists: give another name, or --overwrite")
        check_outputs(page, picture)

    @property
    def wanted(self) -> bool:
        return self._page is not None or self._picture is not None

    def expect(self, images: int, rasters: "Sequence[Raster]", sizes: tuple[int, int]) -> None:
        """Say what will come, before the model is loaded.

        Args:
            sizes: tile and overlap, in pixels.

        Raises:
            RSMoEError: more than can be shown.
        """
        if not self.wanted:
            return
        from ..scenes.grid import Grid
        from ..scenes.map import SIDE, check_map
        from ..scenes.picture import check_picture

        count = images + len(rasters)
        if self._page is not None:
            check_map(count, images + sum(len(Grid(raster.width, raster.height, *sizes)) for raster in rasters))
        if self._picture is not None:
            check_picture(count)
        self._side = SIDE if count <= _FEW else _SMALL_SIDE

    def add_image(self, result: terminal.Result, asked: str, model: str) -> None:
        if self.wanted and result.picture is not None:
            from ..scenes.sheet import of_image

            self._sheets.append(
                of_image(
                    result.image,
                    result.picture,
                    self._side,
                    model=model,
                    asked=asked,
                    text=result.text,
                    router_prompts=result.router_prompts,
                    parts=result.parts,
                )
            )

    def add_scenes(self, results: "Sequence[SceneResult]", steps: terminal.Steps) -> None:
        if self.wanted:
            from ..scenes.sheet import of_scene

            for result in results:
                steps(f"drawing {result.raster.name}")
                self._sheets.append(of_scene(result, self._side))

    def write(self, as_json: bool, steps: terminal.Steps) -> None:
        """
        Raises:
            RSMoEError: no space, for example.
        """
        from ..utils.files import disk_errors

        if not self.wanted:
            return
        from ..scenes.map import write_map
        from ..scenes.picture import write_picture

        for file, write in ((self._page, write_map), (self._picture, write_picture)):
            if file is None:
                continue
            steps(f"writing {file}")
            with disk_errors("cannot write", f"Free some space, or give {file.name} another place."):
                write(self._sheets, file)
            if not as_json:
                steps.print(terminal.printable(f"{file} ({file.stat().st_size / 1e6:.1f} MB)"))

"""Run the tutorials from top to bottom and keep what they show.

    make notebooks            # or: python -m docs.notebooks caption scene

Printed text and small pictures are kept. Maps, widgets, warnings and progress bars are left out: the committed
notebooks stay small, and a change can be read.
`tests/test_notebooks.py` runs them with tiny checkpoints.
"""

import argparse
import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_output
from PIL import Image


TUTORIALS = Path(__file__).resolve().parent / "tutorials"
SIDE = 900  # pixels of a picture, at most


def kept(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Printed text as it is, and pictures as small JPEGs."""
    printed = [output for output in outputs if output.get("name") == "stdout"]
    pngs = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return printed + [new_output("display_data", {"image/jpeg": small_jpeg(png)}) for png in pngs]


def small_jpeg(png: str) -> str:
    """Base64 of a JPEG, of that of a PNG."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def run(file: Path, folder: Path) -> None:
    """Run one notebook in `folder`, and write what it prints into it."""
    book = nbformat.read(file, as_version=4)
    client = NotebookClient(book, timeout=None, coalesce_streams=True, resources={"metadata": {"path": str(folder)}})
    client.execute()
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = kept(cell.outputs)
    nbformat.write(book, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(file.stem for file in TUTORIALS.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", default=names, metavar="NAME", help=f"of {', '.join(names)}")
    root = TUTORIALS.parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "examples"), os.environ.get("PYTHONPATH", "")])
    for name in parser.parse_args().names:
        print(f"running {name} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run(TUTORIALS / f"{name}.ipynb", Path(folder))


if __name__ == "__main__":
    main()

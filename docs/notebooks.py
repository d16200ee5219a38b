"""Run the tutorials from top to bottom and keep what they print.

    make notebooks            # or: python -m docs.notebooks caption scene

Maps, widgets, warnings and progress bars are left out: the committed notebooks stay small, and a change can be read.
`tests/test_notebooks.py` runs them with tiny checkpoints.
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


TUTORIALS = Path(__file__).resolve().parent / "tutorials"


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
            cell.outputs = [output for output in cell.outputs if output.get("name") == "stdout"]
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

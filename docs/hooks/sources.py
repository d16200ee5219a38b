"""Files of the repository that pages link to, as pages of the site: these links need no network.

A link such as `../../examples/add_expert.py` becomes one to the page `source/examples/add_expert.py.md`, which shows
that file; a folder's page lists its files. Markdown files (CONTRIBUTING.md, CHANGELOG.md) are shown as they read.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
PICTURES = {".png", ".svg"}
LANGUAGES = {".py": "python", ".md": "markdown", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".html": "html"}


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for every file that pages link to outside of docs/, and for what these link to."""
    pending = [
        target
        for file in files.documentation_pages()
        if file.abs_src_path and file.src_uri.endswith(".md")
        for target in _outside(Path(file.abs_src_path))
    ]
    while pending:
        path = pending.pop()
        if files.get_file_from_path(_page_of(path)):
            continue
        if path.suffix in PICTURES:
            files.append(File.generated(config, _page_of(path), abs_src_path=str(path)))
            continue
        files.append(File.generated(config, _page_of(path), content=_content(path)))
        if path.is_dir():
            pending += [child for child in _children(path) if not _is_in_docs(child)]
        elif path.suffix == ".md":
            pending += _outside(path)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at these pages."""
    origin = _origin(page.file)

    def relinked(link: re.Match) -> str:
        target = _target(origin, link[1])
        if not target.exists() or (_is_in_docs(target) and origin.is_relative_to(DOCS)):
            return link[0]
        return os.path.relpath(_page_of(target), PurePosixPath(page.file.src_uri).parent) + (link[2] or "")

    return LINK.sub(relinked, markdown) if origin.suffix == ".md" else markdown


def _origin(file: File) -> Path:
    """The file of the repository that a page shows."""
    if not file.src_uri.startswith("source/"):
        return DOCS / file.src_uri
    path = ROOT / file.src_uri.removeprefix("source/")
    return path if path.exists() else path.with_suffix("")


def _target(origin: Path, link: str) -> Path:
    return Path(os.path.normpath(origin.parent / link))


def _is_in_docs(path: Path) -> bool:
    return path.is_relative_to(DOCS) and path.is_file()


def _outside(file: Path) -> Iterator[Path]:
    """What a Markdown file links to that is not a file of docs/."""
    for link in LINK.finditer(file.read_text(encoding="utf-8")):
        target = _target(file, link[1])
        if target.exists() and target.is_relative_to(ROOT) and not _is_in_docs(target):
            yield target


def _page_of(path: Path) -> str:
    if _is_in_docs(path):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"source/{name}" if path.suffix in {".md", *PICTURES} else f"source/{name}.md"


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def _content(path: Path) -> str:
    """Markdown of a file or folder."""
    title = f"# `{path.relative_to(ROOT).as_posix()}`\n\n"
    if path.is_dir():
        here = PurePosixPath(_page_of(path)).parent
        pages = ((child.name, os.path.relpath(_page_of(child), here)) for child in _children(path))
        return title + "".join(f"- [{name}]({uri})\n" for name, uri in pages)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{title}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"

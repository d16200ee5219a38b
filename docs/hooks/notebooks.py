"""Links of notebooks to other pages: mkdocs-jupyter leaves `../how-to/training.md` as it stands."""

import logging
import posixpath
import re
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


logger = logging.getLogger("mkdocs.hooks.notebooks")
LINK = re.compile(r'(?<=href=")(?!\w+:|#|/)([^"#]+\.(?:md|ipynb))(?=[#"])')


def on_page_content(html: str, page: Page, files: Files, **_: Any) -> str:
    """Point them at the pages; one that leads nowhere is a warning, as in Markdown."""

    def relinked(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[1]))
        file = files.get_file_from_path(target)
        if file is None:
            logger.warning("%s links to %s, which is no page", page.file.src_uri, link[1])
            return link[0]
        return file.url_relative_to(page.file)

    return LINK.sub(relinked, html) if page.file.src_uri.endswith(".ipynb") else html

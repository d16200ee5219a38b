"""What the HTML pages of this package have in common: templates that escape every value, images as data URLs, colours.

Texts of a model, captions of people and names of files are untrusted: no template may mark one of them as safe.
"""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image

# The colours of experts, in their order and then from the start again: on a light and on a dark page. Each can be read
# as text there (contrast of 4.5 and more), and the colour-blind can tell them apart (tests/utils/test_html.py).
# [our decision]
COLORS = (
    ("#6d28d9", "#b79cff"),
    ("#b84a00", "#f28c38"),
    ("#00806b", "#4fd1b5"),
    ("#b5179e", "#9be08c"),
    ("#6b3410", "#ffe066"),
    ("#3a3a40", "#e8e8ee"),
)


def render(template: str | Path, **values: Any) -> str:
    """An HTML template with values put in, all of them escaped.

    Args:
        template: the file; it may include its neighbours and `page_head.html`, and knows `COLORS` as `colors`.
        **values: that the template names.

    Raises:
        jinja2.UndefinedError: a value is missing.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(template).parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(Path(template).name).render(colors=COLORS, **values)


def data_url(image: "Image.Image", quality: int = 80) -> str:
    """An image as a JPEG inside a URL, so that a page needs no file beside it.

    Args:
        image: in RGB.
        quality: of the JPEG.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

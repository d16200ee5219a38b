"""The page of `rsmoe demo` as a Hugging Face Space: `python app.py` runs it here, too.

The variable RSMOE_MODEL names another checkpoint than rs-moe-nano: a repository of the Hub, or a folder.
"""

import os

import gradio as gr

from modeling_rsmoe.cli import shared
from modeling_rsmoe.demo.page import launch, make_page
from modeling_rsmoe.demo.viewer import Viewer
from modeling_rsmoe.hub.download import demo_images


def build() -> gr.Blocks:
    with shared.Steps() as steps:
        examples = demo_images(progress=steps)
        loaded = shared.load(os.environ.get("RSMOE_MODEL"), steps)
    return make_page(Viewer(loaded.name, loaded.model, loaded.processor), examples)


if __name__ == "__main__":
    page = build()
    print(*filter(None, launch(page)))
    page.block_thread()

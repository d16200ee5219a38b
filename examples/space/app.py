"""The page of `rsmoe demo` as a Hugging Face Space: `python app.py` runs it here, too.

The variable RSMOE_MODEL names another checkpoint than rs-moe-nano: a repository of the Hub, or a folder.
"""

import os

import gradio as gr

from modeling_rsmoe.cli.terminal import Steps
from modeling_rsmoe.demo.page import launch, make_page
from modeling_rsmoe.hub.download import demo_images
from modeling_rsmoe.inference import load


def build() -> gr.Blocks:
    with Steps() as steps:
        examples = demo_images(progress=steps)
        checkpoint = load(os.environ.get("RSMOE_MODEL"), progress=steps)
    return make_page(checkpoint, examples)


if __name__ == "__main__":
    page = build()
    print(*filter(None, launch(page)))
    page.block_thread()

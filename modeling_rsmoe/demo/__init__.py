"""The page to try the model on: `images` reads what visitors upload, `page` is what they see, `guard` what they may
ask of its server."""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it reports its own import otherwise

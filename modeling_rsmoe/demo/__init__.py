"""The page to try the model on: `viewer` looks at images for many people, `page` is what they see."""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it reports its own import otherwise

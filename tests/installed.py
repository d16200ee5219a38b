"""What `make test-wheel` asks of the wheel in an environment without a checkout: `python -I installed.py FOLDER`.

FOLDER is a tiny checkpoint; it is loaded by the code that it carries.
"""

import sys
from pathlib import Path

import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor, logging

import modeling_rsmoe
from modeling_rsmoe.hub.sources import HUB_CONFIGS, known_names, settings_folder


def main(folder: str) -> None:
    package = Path(modeling_rsmoe.__file__).parent
    assert package.parent.name == "site-packages", f"{package} is not what the wheel installed"
    assert package / "hub_configs" == HUB_CONFIGS
    assert known_names() == ["rs-moe-nano"] and settings_folder("rs-moe-7b").is_dir()

    logging.set_verbosity_error()
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    image = np.zeros((32, 32, 3), np.uint8)
    inputs = processor(images=image, text="Describe the image.", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    assert list(processor.post_process_generation(outputs)[0]["expert_texts"]) == ["theme", "object", "relation"]
    print(f"rsmoe {modeling_rsmoe.__version__} works from {package}")


if __name__ == "__main__":
    main(sys.argv[1])

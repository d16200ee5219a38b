"""`transformers serve` for RS-MoE checkpoints, as far as transformers 5.23 goes.

    python examples/transformers_serve.py serve nano --port 8000

`transformers serve --trust-remote-code` takes no model whose class is not transformers' own:
cli/serving/model_manager.py looks the class up in the library (line 303) and asks its tables which kind of model the
class is (lines 467 to 480). With the class entered in both, all else works: images as data URLs, streaming. It answers
one request after the other and has no limits; `rsmoe serve` has them.
"""

import transformers
from transformers.cli.transformers import main
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration


transformers.RSMoEForConditionalGeneration = RSMoEForConditionalGeneration
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[RSMoEConfig.model_type] = RSMoEForConditionalGeneration.__name__

if __name__ == "__main__":
    main()

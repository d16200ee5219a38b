"""What contenders are called, in results, tables and plots. Imports nothing, so that results can be read without torch."""

BLOCK = "base LM alone"
FULL, TEMPLATE = "full, router, concat", "full, template, concat"
OURS, ONE_BY_ONE = "RS-MoE, one batch", "RS-MoE, row by row"
PEFT, MERGED = "PEFT adapter_names", "an LLM for each expert"
ONE_BATCH, ONE_AFTER_ANOTHER = "one batch", "one after another"
PLAIN_SEARCH = "transformers' own search and products"
INSTRUCTBLIP = "transformers' InstructBLIP"
TRL, OURS_SINGLE, OURS_SETTINGS = "TRL's SFTTrainer", "ours, one reference in a row", "ours, as the settings say"


def tokens(count: int) -> str:
    """How many, in words."""
    return "1 token" if count == 1 else f"{count} tokens"


def images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"

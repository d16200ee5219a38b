"""What variants are called in results, tables and plots. Imports nothing, so results can be read without torch."""

BASE = "base LM alone"
BASE_IMAGE, FULL_IMAGE = "base LM alone, 1 image", "full, 1 image"  # of a fresh process
PROCESS = "whole process"
FULL, TEMPLATE = "full, router, concat", "full, template, concat"
RSMOE, ONE_BY_ONE = "RS-MoE, one batch", "RS-MoE, one sequence at a time"
PEFT, MERGED = "PEFT adapter_names", "an LLM for each expert"
ONE_BATCH, ONE_AFTER_ANOTHER = "one batch", "one after another"
PLAIN_SEARCH = "transformers' own search and products"
INSTRUCTBLIP = "transformers' InstructBLIP"
RERANKED, SMOLVLM = "full, router, rerank", "SmolVLM-256M, 1 tile"
TRANSFORMERS = "transformers"
LLAMA_CPP = "llama.cpp, {}"  # with the type of its weights
TRL = "TRL's SFTTrainer"
ONE_REFERENCE, ALL_REFERENCES = "ours, one reference per example", "ours, as the settings say"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 token", "3 tokens"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

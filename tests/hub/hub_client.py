"""What a user does with the Hub; test_push_pull.py runs this file in fresh processes with caches of their own.

`python -I hub_client.py push FOLDER ID JSON`: with "card" the folder's card, model, processor, then every part under
parts/. Arguments of push_to_hub.
`python -I hub_client.py pull ID OUT JSON`: by the repository's own code (this package is blocked), arguments of
from_pretrained. Writes OUT.safetensors and prints what was found, or the error.
"""

import importlib.util
import json
import sys
from pathlib import Path


def reader_module():
    spec = importlib.util.spec_from_file_location("remote_reader", Path(__file__).parents[1] / "remote_reader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def push(folder: str, repo_id: str, arguments: dict) -> dict:
    from huggingface_hub import HfApi, ModelCard

    from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor

    parts = Path(arguments.pop("parts", ""))
    if arguments.pop("card", False):  # first: without a card there, the model's push writes an empty form
        HfApi().create_repo(repo_id, exist_ok=True)
        ModelCard.load(Path(folder) / "README.md").push_to_hub(repo_id)
    shards = {"max_shard_size": arguments.pop("max_shard_size")} if "max_shard_size" in arguments else {}
    made = RSMoEForConditionalGeneration.from_pretrained(folder).push_to_hub(repo_id, **shards, **arguments)
    made = RSMoEProcessor.from_pretrained(folder).push_to_hub(repo_id, **arguments)
    if parts.name:
        made = HfApi().upload_folder(repo_id=repo_id, folder_path=parts, path_in_repo="experts")
    return {"commit": made.oid}


def pull(repo_id: str, out: str, arguments: dict) -> dict:
    reader = reader_module()
    sys.meta_path.insert(0, reader.PackageBlocker())
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

    if "subfolder" in arguments:
        model = AutoModel.from_pretrained(repo_id, trust_remote_code=True, **arguments)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, f"{out}.safetensors")
        return {"class": type(model).__name__, "module": type(model).__module__}
    model = AutoModelForImageTextToText.from_pretrained(repo_id, trust_remote_code=True, **arguments).eval()
    processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True, **arguments)
    pixels = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = processor(images=pixels, text="what?", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    tensors = {"logits": model(inputs["input_ids"]).logits, "sequences": outputs.sequences}
    save_file({**tensors, "qformer_input_ids": inputs["qformer_input_ids"]}, f"{out}.safetensors")
    tokenizer = type(processor.qformer_tokenizer).__name__
    return {"class": type(model).__name__, "module": type(model).__module__, "qformer_tokenizer": tokenizer}


def main(action: str, source: str, target: str, arguments: str) -> None:
    from transformers import logging

    logging.set_verbosity_error()
    try:
        found = {"push": push, "pull": pull}[action](source, target, json.loads(arguments))
    except Exception as error:
        cause = error.__cause__ or error.__context__
        found = {"error": type(error).__name__, "message": str(error), "cause": type(cause).__name__}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How much each layer of a frozen ViT says of an image, at several image sizes: a choice to make before any training.

    python examples/probe_vision.py CHECKPOINT DATA [--all-layers] [--layers 4 6 8] [--sizes 168 224 336] [--images
    1500]

A ridge regression from the mean feature of an image to the embedding of its captions (by the Q-Former's own text path)
is fitted on train images; on val images, R@10 is the share whose own captions are among the ten nearest to the
prediction, out of all val images of the sample. `--all-layers` takes rs-moe-nano's ViT with all its layers from the
pinned wheel in place of the checkpoint's, which is cut. Prints a Markdown table, with milliseconds for an image of
that size.
"""

import argparse
import copy
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModel

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data.records import CaptionRecord, read_captions
from modeling_rsmoe.hub.download import wheel_files
from modeling_rsmoe.hub.pretrained import dinov2_from_onnx
from modeling_rsmoe.hub.sources import pinned_sources
from modeling_rsmoe.utils.images import read_images


BATCH = 16
RIDGE_GRID = (1e1, 1e2, 1e3, 1e4)  # the best on a tenth of the train images is taken
NEAREST = 10


def main(argv: list[str] | None = None) -> dict[tuple[int, int], float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, help="a data folder with captions.jsonl")
    parser.add_argument("--all-layers", action="store_true", help="all layers of nano's ViT, from its wheel")
    parser.add_argument("--layers", type=int, nargs="+", help="by default every second one")
    parser.add_argument("--sizes", type=int, nargs="+", default=[168, 224, 336], help="pixels, multiples of the patch")
    parser.add_argument("--images", type=int, default=1500, help="train images; val images are a third of them")
    given = parser.parse_args(argv)
    model = RSMoEForConditionalGeneration.from_pretrained(given.checkpoint, dtype=torch.float32).eval()
    processor = RSMoEProcessor.from_pretrained(given.checkpoint)
    vision = complete_vit(model) if given.all_layers else model.model.encoder.vision_model
    depth = vision.config.num_hidden_layers
    layers = given.layers or list(range(2, depth + 1, 2))
    if max(layers) > depth or min(layers) < 1:
        parser.error(f"--layers {' '.join(map(str, layers))}: this ViT has layers 1 to {depth}")
    train = sample(given.data, "train", given.images)
    val = sample(given.data, "val", given.images // 3)
    texts = {split: embedded(model, processor, records) for split, records in (("train", train), ("val", val))}
    recalls = {}
    print(f"| size | ms / image | {' | '.join(f'layer {layer}' for layer in layers)} |")
    print(f"|---:|---:|{'---:|' * len(layers)}")
    for size in given.sizes:
        means, seconds = {}, 0.0
        for split, records in (("train", train), ("val", val)):
            began = time.perf_counter()
            means[split] = mean_features(vision, processor, records, size, layers)
            seconds += time.perf_counter() - began
        cells = []
        for place, layer in enumerate(layers):
            recalls[size, layer] = recall(means["train"][place], texts["train"], means["val"][place], texts["val"])
            cells.append(f"{100 * recalls[size, layer]:.1f}")
        print(f"| {size} | {1000 * seconds / (len(train) + len(val)):.0f} | {' | '.join(cells)} |", flush=True)
    return recalls


def complete_vit(model: RSMoEForConditionalGeneration) -> torch.nn.Module:
    config = copy.deepcopy(model.config.vision_config)
    config.num_hidden_layers = 12
    vision = AutoModel.from_config(config)
    with wheel_files(pinned_sources("rs-moe-nano").modules["vision_model"].wheel) as files:
        (onnx,) = (path for name, path in files.items() if name.endswith(".onnx"))
        vision.load_state_dict(dinov2_from_onnx(onnx, config.num_hidden_layers))
    return vision.eval()


def sample(data: Path, split: str, number: int) -> list[CaptionRecord]:
    records = read_captions(data, split)
    return random.Random(f"probe/{split}").sample(records, min(number, len(records)))


@torch.no_grad()
def embedded(model, processor, records: list[CaptionRecord]) -> torch.Tensor:
    """[images, Q-Former width]: the mean embedding of each image's captions, of unit length."""
    vectors = []
    for record in tqdm(records, desc="captions", leave=False):
        encoded = processor.tokenize_qformer(list(dict.fromkeys(record.captions)), "pt")
        mask = encoded["qformer_attention_mask"]
        hidden = model.model.encoder.qformer(encoded["qformer_input_ids"], mask).last_hidden_state
        mask = mask.unsqueeze(-1)
        vectors.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).mean(0))
    return F.normalize(torch.stack(vectors), dim=-1)


@torch.no_grad()
def mean_features(vision, processor, records: list[CaptionRecord], size: int, layers: list[int]) -> list[torch.Tensor]:
    """For each layer [images, width]: the mean over an image's tokens."""
    means: list[list[torch.Tensor]] = [[] for _ in layers]
    for start in tqdm(range(0, len(records), BATCH), desc=f"{size} px", leave=False):
        images = read_images([record.image for record in records[start : start + BATCH]])
        shape = {"height": size, "width": size}
        pixels = processor.image_processor(images=images, size=shape, return_tensors="pt")["pixel_values"]
        hidden = vision(pixel_values=pixels, output_hidden_states=True).hidden_states
        for of_layer, layer in zip(means, layers):
            of_layer.append(hidden[layer].mean(1))
    return [torch.cat(of_layer) for of_layer in means]


def recall(features: torch.Tensor, texts: torch.Tensor, val_features: torch.Tensor, val_texts: torch.Tensor) -> float:
    """R@10 of val images."""
    mean, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    features, val_features = (features - mean) / spread, (val_features - mean) / spread
    tenth = max(1, len(features) // 10)

    def predicted(inputs: torch.Tensor, targets: torch.Tensor, queries: torch.Tensor, ridge: float) -> torch.Tensor:
        average = targets.mean(0)
        penalty = ridge * torch.eye(inputs.shape[1])
        weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (targets - average))
        return F.normalize(queries @ weights + average, dim=-1)

    def hits(predictions: torch.Tensor, truth: torch.Tensor) -> float:
        similar = predictions @ truth.T
        nearest = similar.topk(min(NEAREST, len(truth))).indices
        return (nearest == torch.arange(len(truth)).unsqueeze(1)).any(1).float().mean().item()

    held_out = [
        hits(predicted(features[tenth:], texts[tenth:], features[:tenth], ridge), texts[:tenth])
        for ridge in RIDGE_GRID
    ]
    ridge = RIDGE_GRID[max(range(len(RIDGE_GRID)), key=held_out.__getitem__)]
    return hits(predicted(features, texts, val_features, ridge), val_texts)


if __name__ == "__main__":
    main()

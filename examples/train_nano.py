"""Train rs-moe-nano's own weights in four steps, plainly: a first training on one or two CPU cores.

    rsmoe assemble rs-moe-nano --output START --untrained
    python examples/train_nano.py features --data DATA --start START --output RUN   # ViT features of every image, once
    python examples/train_nano.py align    --data DATA --start START --output RUN   # warm up the Q-Former on captions
    python examples/train_nano.py stage1   --data DATA --start START --output RUN   # Q-Former and LLM block (LoRA)
    python examples/train_nano.py stage2   --data DATA --start START --output RUN   # router and experts
    python examples/train_nano.py export   --start START --output RUN               # RUN/trained.safetensors

DATA is a folder with captions.jsonl and vqa.jsonl. Every step can be stopped and started again: it goes on from its
last checkpoint. The ViT is frozen [paper]; its features are computed once. The warm-up is [our decision]: BLIP-2
trains its Q-Former on image-text pairs before any LLM sees it, and without it nano's captions hardly look at the
image.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data.records import read_captions, read_questions
from modeling_rsmoe.data.rows import Row, stage1_rows, stage2_rows


SETTINGS = {
    "align": {"steps": 450, "batch": 32, "lr": 3e-4, "warmup": 50},
    "stage1": {"steps": 700, "batch": 16, "lr": 5e-4, "warmup": 30},
    "stage2": {"steps": 260, "batch": 16, "lr": 5e-4, "warmup": 20},
}
LLM_LORA = {"r": 16, "lora_alpha": 32}
PRETRAINED_LR = 0.3  # of the learning rate, for the parts of the Q-Former that come from MiniLM
FROZEN_IN_QFORMER = ("embeddings.", ".intermediate.dense", ".output.dense", ".output.LayerNorm")  # MiniLM's text path
SEED = 17
CHECKPOINT_EVERY = 50  # steps


class Features:
    """ViT features of the images of a data folder, [patches, width] in half precision each, read from disk as they are needed."""

    def __init__(self, folder: Path):
        self.index = {image: i for i, image in enumerate(json.loads((folder / "features.json").read_text()))}
        self.values = np.load(folder / "features.npy", mmap_mode="r")
        stats = load_file(folder / "standard.safetensors")
        self.weight, self.bias = stats["weight"], stats["bias"]

    def __call__(self, images: list[str]) -> torch.Tensor:
        """[images, patches, width] as the model's ViT gives them with the layer norm of `standard.safetensors`."""
        values = np.stack([self.values[self.index[image]] for image in images])
        return torch.from_numpy(values).float() * self.weight + self.bias


def make_features(data: Path, datasets: list[str], model, processor: RSMoEProcessor, output: Path) -> None:
    """Features of all train and val images; then each channel's mean and spread over 500 of them, which become the weights
    of the ViT's final layer norm [our decision: the cut ViT has no norm of its own]."""
    records = [*read_captions(data, "train"), *read_questions(data, "train")]
    records += [*read_captions(data, "val", datasets), *read_questions(data, "val")]
    images = list(dict.fromkeys(str(record.image.relative_to(data)) for record in records))
    path, temporary = output / "features.npy", output / "features.part.npy"
    if not path.exists():
        values = None
        for start in tqdm(range(0, len(images), 8), desc="features"):
            some = [data / image for image in images[start : start + 8]]
            embeds = model.encode_image(processor(images=some, return_tensors="pt")["pixel_values"]).half().numpy()
            if values is None:
                shape = (len(images), *embeds.shape[1:])
                values = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            values[start : start + 8] = embeds
        values.flush()
        temporary.rename(path)
        write_json(output / "features.json", images)
    sample = np.load(path, mmap_mode="r")[
        np.random.default_rng(SEED).choice(len(images), min(500, len(images)), replace=False)
    ]
    channels = torch.from_numpy(sample).float().flatten(0, 1)
    weight = 1 / channels.std(0)
    save_file({"weight": weight, "bias": -channels.mean(0) * weight}, output / "standard.safetensors")


def align(model, processor, features: Features, data: Path, datasets: list[str], output: Path, settings: dict) -> None:
    """Warm-up of the Q-Former: its queries name the words of the captions, and pooled they are near the captions' embedding.

    Words: a query that sees a thing says its word (sigmoid over the frequent words, the best query counts), which
    keeps queries apart. Embedding: contrast of images with captions embedded by the frozen text path of the Q-Former
    itself, MiniLM; captions that are nearly the same share the target.
    """
    records = read_captions(data, "train", datasets)
    embeddings = embed_captions(model, processor, records, output)  # [images, 5, width]
    words = frequent_words(records, least=max(2, len(records) // 500))
    targets = torch.zeros(len(records), len(words))
    for i, record in enumerate(records):
        for caption in record.captions:
            for word in set(tokens_of(caption)) & words.keys():
                targets[i, words[word]] = 1
    encoder, width = model.model.encoder, model.config.qformer_config.hidden_size
    torch.manual_seed(SEED)
    heads = torch.nn.ModuleDict(
        {"words": torch.nn.Linear(width, len(words)), "embedding": torch.nn.Linear(width, width)}
    )
    torch.nn.init.constant_(heads["words"].bias, -4.0)
    train_only(model, qformer=True)
    encoder.projection.requires_grad_(False)
    images = [str(record.image.relative_to(data)) for record in records]
    instruction = processor.tokenize_qformer(["Describe the image."], "pt")

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{SEED}/align/{step}")
        chosen = rng.sample(range(len(records)), min(settings["batch"], len(records)))
        texts = torch.stack([embeddings[i, rng.randrange(5)] for i in chosen])
        ids = instruction["input_ids"].expand(len(chosen), -1)
        hidden = encoder.query_states(
            image_embeds=features([images[i] for i in chosen]), qformer_input_ids=ids
        )  # [batch, 32, width]
        named = heads["words"](hidden).logsumexp(1) - math.log(hidden.shape[1])  # soft maximum over the queries
        word = F.binary_cross_entropy_with_logits(named, targets[chosen], reduction="none").sum(1).mean() / 10
        pooled = F.normalize(heads["embedding"](hidden).mean(1), dim=-1)
        same = (texts @ texts.T / 0.05).softmax(-1)
        contrast = F.cross_entropy(pooled @ texts.T / 0.05, same) - (-(same * same.log()).sum(-1).mean())
        return {"loss": word + contrast, "word": word, "contrast": contrast}

    run_steps("align", [encoder, heads], loss_of, output, settings)


@torch.no_grad()
def embed_captions(model, processor, records, output: Path) -> torch.Tensor:
    """MiniLM's embedding of every caption, [images, 5, width], through the text path of the untrained Q-Former."""
    path = output / "captions.safetensors"
    if not path.exists():
        texts = [caption for record in records for caption in (record.captions * 5)[:5]]
        unique = list(dict.fromkeys(texts))
        vectors = []
        for start in tqdm(range(0, len(unique), 64), desc="caption embeddings"):
            encoded = processor.tokenize_qformer(unique[start : start + 64], "pt")
            hidden = model.model.encoder.qformer(**encoded).last_hidden_state
            mask = encoded["attention_mask"].unsqueeze(-1)
            vectors.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        place = {text: i for i, text in enumerate(unique)}
        save_file({"embeddings": torch.cat(vectors)[[place[text] for text in texts]]}, path)
    return load_file(path)["embeddings"].view(len(records), 5, -1)


def tokens_of(caption: str) -> list[str]:
    return "".join(c if c.isalpha() else " " for c in caption.lower()).split()


def frequent_words(records, least: int) -> dict[str, int]:
    """Words of at least `least` images, without the most frequent ones that say nothing of an image."""
    counts: dict[str, int] = {}
    for record in records:
        for word in {word for caption in record.captions for word in tokens_of(caption)}:
            counts[word] = counts.get(word, 0) + 1
    often = {word for word, n in counts.items() if n > 0.5 * len(records)}
    return {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n >= least and w not in often))}


def train_rows(
    stage: str, model, processor, features: Features, data: Path, datasets: list[str], output: Path, settings: dict
):
    """Next-token cross-entropy on the completions of rows of all kinds [paper: the loss; design of rows: our decision]."""
    captions = read_captions(data, "train", datasets)
    questions = read_questions(data, "train")
    per_epoch = settings["batch"] * settings["steps"]
    if stage == "stage1":
        rows = stage1_rows(captions, questions, seed=SEED, count=per_epoch)
        lora = LoraConfig(target_modules=model.config.expert_config.target_modules, **LLM_LORA)
        torch.manual_seed(SEED)
        inject_adapter_in_model(lora, model.model.language_model)
        model.model.language_model.to(torch.bfloat16)
        train_only(model, qformer=True, llm_lora=True)
    else:
        rows = stage2_rows(captions, questions, processor.expert_instructions, seed=SEED, count=per_epoch)
        torch.manual_seed(SEED)
        model.model.reset_experts()
        model.model.language_model.to(torch.bfloat16)  # matrix products in half precision: several times faster
        train_only(model, experts=True)
    batches = similar_lengths(rows, settings["batch"])

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        batch = batches[step % len(batches)]
        inputs = collate(batch, processor)
        inputs["image_embeds"] = features([str(row.image.relative_to(data)) for row in batch])
        labels = inputs.pop("labels")
        hidden = model.model(**inputs).last_hidden_state[:, :-1]
        kept = labels[:, 1:] != -100  # the head is run where there are labels, not over images and prompts
        logits = model.lm_head(hidden[kept])
        losses = F.cross_entropy(logits.float(), labels[:, 1:][kept], reduction="none")
        # Every row counts the same, long or short, so that answers of one word are learned too [our decision].
        row_of = kept.nonzero()[:, 0]
        per_row = torch.zeros(len(batch)).index_add(0, row_of, losses) / kept.sum(1)
        kinds = {
            kind: per_row[[i for i, row in enumerate(batch) if row.kind == kind]].mean()
            for kind in {r.kind for r in batch}
        }
        return {"loss": losses.mean() * 0.5 + per_row.mean() * 0.5, **kinds}

    run_steps(stage, [model], loss_of, output, settings)


def similar_lengths(rows: list[Row], batch: int) -> list[list[Row]]:
    """Rows of similar length together, batches in random order: less padding."""
    ordered = []
    for start in range(0, len(rows), batch * 32):
        some = sorted(rows[start : start + batch * 32], key=lambda row: len(row.prompt) + len(row.completion))
        batches = [some[i : i + batch] for i in range(0, len(some), batch)]
        random.Random(f"{SEED}/{start}").shuffle(batches)
        ordered += batches
    return ordered


def collate(rows: list[Row], processor: RSMoEProcessor) -> dict[str, torch.Tensor]:
    """Rows as tensors, padded on the left; labels only on the completions and their end token."""
    prompts = [processor.render(row.prompt) for row in rows]
    prompt_ids = [processor.tokenizer(processor.with_image_tokens(prompt))["input_ids"] for prompt in prompts]
    end = processor.tokenizer.eos_token
    completion_ids = [processor.tokenizer(f" {row.completion}{end}")["input_ids"] for row in rows]
    width = max(len(p) + len(c) for p, c in zip(prompt_ids, completion_ids))
    pads = [width - len(p) - len(c) for p, c in zip(prompt_ids, completion_ids)]
    pad = processor.tokenizer.pad_token_id
    qformer = processor.tokenize_qformer([processor.qformer_instruction(prompt) for prompt in prompts], "pt")
    return {
        "input_ids": torch.tensor([[pad] * n + p + c for n, p, c in zip(pads, prompt_ids, completion_ids)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (width - n) for n in pads]),
        "labels": torch.tensor([[-100] * (n + len(p)) + c for n, p, c in zip(pads, prompt_ids, completion_ids)]),
        "qformer_input_ids": qformer["input_ids"],
        "qformer_attention_mask": qformer["attention_mask"],
    }


def train_only(model, qformer: bool = False, llm_lora: bool = False, experts: bool = False) -> None:
    """Which weights learn: stage 1 the Q-Former and the LLM block's LoRA, stage 2 router and experts [paper]."""
    model.requires_grad_(False)
    if qformer:
        encoder = model.model.encoder
        for part in (encoder.qformer, encoder.query_tokens, encoder.projection):
            part.requires_grad_(True)
        for name, parameter in encoder.qformer.named_parameters():
            text_path = not ("_query" in name or "attention" in name)
            if text_path and any(part in name for part in FROZEN_IN_QFORMER):
                parameter.requires_grad_(False)
    if llm_lora:
        for name, parameter in model.model.language_model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    if experts:
        model.model.router.requires_grad_(True)
        model.model.experts.requires_grad_(True)


def run_steps(stage: str, modules: list[torch.nn.Module], loss_of, output: Path, settings: dict) -> None:
    """AdamW with warm-up and linear decay [paper: AdamW, linear decay]; a checkpoint every few minutes; resumes."""
    parameters = {
        f"{i}.{name}": p
        for i, module in enumerate(modules)
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    # Weights in half precision learn through copies in full precision, or small steps would be lost.
    masters = {n: p if p.dtype == torch.float32 else p.detach().float() for n, p in parameters.items()}
    pretrained = [n for n in masters if "qformer" in n and "crossattention" not in n]  # from MiniLM
    groups = [
        {"params": [p for n, p in masters.items() if n not in pretrained], "lr": settings["lr"]},
        {"params": [masters[n] for n in pretrained], "lr": settings["lr"] * PRETRAINED_LR},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(0.9, 0.999), weight_decay=0.05
    )
    bases = [group["lr"] for group in optimizer.param_groups]
    folder = output / stage
    folder.mkdir(parents=True, exist_ok=True)
    start = load_checkpoint(folder, masters, optimizer)
    copy_masters(masters, parameters)
    for module in modules:
        module.train()
    begun, log = time.time(), (folder / "log.jsonl").open("a")
    progress = tqdm(
        range(start, settings["steps"]), desc=stage, initial=start, total=settings["steps"], mininterval=30
    )
    for step in progress:
        torch.manual_seed(SEED + step)
        rise = min(1.0, (step + 1) / settings["warmup"])
        fall = 1 - 0.95 * step / settings["steps"]
        for group, base in zip(optimizer.param_groups, bases):
            group["lr"] = base * rise * fall
        losses = loss_of(step)
        losses["loss"].backward()
        for name, parameter in parameters.items():
            if masters[name] is not parameter and parameter.grad is not None:
                masters[name].grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        copy_masters(masters, parameters)
        log.write(
            json.dumps({"step": step, "seconds": time.time() - begun, **{k: v.item() for k, v in losses.items()}})
            + "\n"
        )
        log.flush()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == settings["steps"]:
            save_checkpoint(folder, masters, optimizer, step + 1)
            progress.set_postfix(loss=f"{losses['loss'].item():.3f}")
    log.close()
    plot_losses(folder)


@torch.no_grad()
def copy_masters(masters: dict, parameters: dict) -> None:
    for name, parameter in parameters.items():
        if masters[name] is not parameter:
            parameter.copy_(masters[name])


def save_checkpoint(folder: Path, parameters: dict, optimizer, step: int) -> None:
    state = {f"weight/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            state[f"{key}/{name}"] = torch.as_tensor(value)
    temporary = folder / "checkpoint.part"
    save_file({key: value.contiguous() for key, value in state.items()}, temporary, metadata={"step": str(step)})
    os.replace(temporary, folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, parameters: dict, optimizer=None) -> int:
    """Put the last checkpoint's weights (and the optimizer's state) back; returns its step, 0 without one."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    state = load_file(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"weight/{name}"])
            if optimizer is not None:
                keys = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {key: state[f"{key}/{name}"] for key in keys if f"{key}/{name}" in state}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def plot_losses(folder: Path) -> None:
    """The loss curve of every kind of row, smoothed, as a picture beside the checkpoint."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = [json.loads(line) for line in (folder / "log.jsonl").open()]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for kind in sorted({key for entry in entries for key in entry} - {"step", "seconds"}):
        points = [(entry["step"], entry[kind]) for entry in entries if kind in entry]
        window = max(1, len(points) // 40)
        values = np.convolve([value for _, value in points], np.ones(window) / window, mode="valid")
        axes.plot([step for step, _ in points][window - 1 :], values, label=kind, linewidth=2 if kind == "loss" else 1)
    axes.set(xlabel="step", ylabel="loss", title=f"{folder.name}: running mean of the training loss")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "loss.png", dpi=110)


def restore(model, output: Path, stages: list[str]) -> None:
    """The model after `stages`: their checkpoints over the start."""
    if (output / "standard.safetensors").exists():
        model.model.encoder.vision_model.layernorm.load_state_dict(load_file(output / "standard.safetensors"))
    for stage in stages:
        path = output / stage / "checkpoint.safetensors"
        if not path.exists():
            raise SystemExit(f"{path} is missing: run the step {stage!r} first.")
        state = {k.removeprefix("weight/0."): v for k, v in load_file(path).items() if k.startswith("weight/0.")}
        with torch.no_grad():
            if stage == "align":
                model.model.encoder.load_state_dict(state, strict=False)
                continue
            for name, value in state.items():
                if "lora_" in name and "language_model" in name:
                    continue
                model.get_parameter(name).copy_(value)
            for name, a in state.items():  # the LLM block's LoRA, merged: "...q_proj.lora_A.default.weight"
                if "language_model" in name and ".lora_A." in name:
                    b = state[name.replace("lora_A", "lora_B")]
                    weight = model.get_parameter(name.split(".lora_A.")[0] + ".weight")
                    weight += LLM_LORA["lora_alpha"] / LLM_LORA["r"] * (b @ a)


def export(model, output: Path) -> None:
    """All that training changed, in half precision, as `rsmoe assemble` wants it."""
    trained = load_file(output / "standard.safetensors")
    tensors = {f"model.encoder.vision_model.layernorm.{name}": value for name, value in trained.items()}
    for stage in ("stage1", "stage2"):
        for key, value in load_file(output / stage / "checkpoint.safetensors").items():
            if not key.startswith("weight/"):
                continue
            name = key.removeprefix("weight/0.")
            if "language_model" in name and "lora_" in name:
                name = "llm_lora." + name.removeprefix("model.language_model.").replace(".default.weight", "")
            tensors[name] = value
    tensors = {name: value.to(torch.float16).contiguous() for name, value in tensors.items()}
    scaling = LLM_LORA["lora_alpha"] / LLM_LORA["r"]
    save_file(tensors, output / "trained.safetensors", metadata={"llm_lora_scaling": str(scaling), "format": "pt"})
    print(output / "trained.safetensors", round((output / "trained.safetensors").stat().st_size / 1e6, 1), "MB")


def write_json(path: Path, value) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["features", "align", "stage1", "stage2", "export"])
    parser.add_argument("--data", type=Path, help="folder with captions.jsonl and vqa.jsonl")
    parser.add_argument("--start", type=Path, required=True, help="the assembled checkpoint without trained weights")
    parser.add_argument("--output", type=Path, required=True, help="features, checkpoints, logs and curves go here")
    parser.add_argument("--datasets", nargs="+", default=["RSICD", "UCM-Captions"], help="captions to train on")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the setting in this file")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = RSMoEForConditionalGeneration.from_pretrained(arguments.start, dtype=torch.float32)
    processor = RSMoEProcessor.from_pretrained(arguments.start)
    if arguments.step == "features":
        with torch.no_grad():
            return make_features(
                arguments.data.resolve(), arguments.datasets, model.eval(), processor, arguments.output
            )
    if arguments.step == "export":
        return export(model, arguments.output)
    data = arguments.data.resolve()
    features = Features(arguments.output)
    settings = {**SETTINGS[arguments.step], **({"steps": arguments.steps} if arguments.steps else {})}
    if arguments.step == "align":
        return align(model, processor, features, data, arguments.datasets, arguments.output, settings)
    restore(model, arguments.output, {"stage1": ["align"], "stage2": ["stage1"]}[arguments.step])
    train_rows(arguments.step, model, processor, features, data, arguments.datasets, arguments.output, settings)


if __name__ == "__main__":
    main()

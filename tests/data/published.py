"""Tiny copies of the benchmarks' published files: the same layout and fields, made-up texts, random colors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image


def image(path: Path, size: int = 12) -> Path:
    """A small image whose colors depend on its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(crc32(str(path.name).encode())).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def karpathy(file: Path, images: Path, names: dict[str, str]) -> None:
    """``names`` are file names by split; as published, a sentence has tokens and ids beside its text."""
    items = []
    for number, (name, split) in enumerate(names.items()):
        image(images / name)
        texts = [f"a {name}  seen from above ."] * 4 + ["many trees ."]
        sentences = [{"tokens": text.split(), "raw": text, "imgid": number, "sentid": 0} for text in texts]
        items.append({"filename": name, "imgid": number, "sentences": sentences, "split": split, "sentids": [0]})
    write_json(file, {"images": items, "dataset": "rsicd"})


def rsicd(folder: Path) -> None:
    names = {"airport_1.jpg": "train", "airport_2.jpg": "train", "00001.jpg": "val", "pond_3.jpg": "test"}
    karpathy(folder / "dataset_rsicd.json", folder / "RSICD_images", names)


def ucm(folder: Path) -> None:
    karpathy(folder / "dataset.json", folder / "imgs", {"1.tif": "train", "2.tif": "val", "3.tif": "test"})


def nwpu(folder: Path) -> None:
    def item(name: str, split: str, last: str = "five .") -> dict[str, Any]:
        texts = {"raw": f"{name}  one .", "raw_1": "two .", "raw_2": "three .", "raw_3": "four .", "raw_4": last}
        return {"filename": name, "filepath": "", "imgid": 0, "split": split, **texts}

    image(folder / "NWPU_images/airplane/airplane_001.jpg")
    image(folder / "NWPU_images/bridge/bridge_001.jpg")
    image(folder / "NWPU_images/bridge/bridge_002.jpg")
    classes = {
        "airplane": [item("airplane_001.jpg", "train"), item("airplane_111.jpg", "train")],
        "bridge": [item("bridge_001.jpg", "val"), item("bridge_002.jpg", "test", last="")],
    }
    write_json(folder / "dataset_nwpu.json", classes)


def rsicap(folder: Path) -> None:
    image(folder / "images/P0378_0001.png")
    row = {"image_id": "0", "filename": "P0378_0001.png", "text_input": "Describe this image in detail."}
    write_json(folder / "captions.json", {"annotations": [{**row, "text_output": "This is a parking lot.  Big."}]})


def rsieval(folder: Path) -> None:
    image(folder / "images/P1384_0054.png")
    pairs = [
        {"question": "Does this image contains trees?", "answer": "Yes.", "type": "presence"},
        {"question": "Where are the planes?", "answer": "The upper part.", "type": "ab_position"},
    ]
    row = {"filename": "P1384_0054.png", "caption": "Grassland with trees.", "qa_pairs": pairs}
    write_json(folder / "annotations.json", {"annotations": [row]})


def vrsbench(folder: Path) -> None:
    for name in ("Images_train/P0000_0002.png", "Images_val/P0003_0002.png"):
        image(folder / name)
    annotation = {
        "image": "P0000_0002.png",
        "caption": "Two ships at a pier.",
        "objects": [{"obj_id": 0, "referring_sentence": "The ship.", "obj_cls": "ship", "is_unique": True}],
        "qa_pairs": [{"ques_id": 0, "question": "How many ships?", "type": "Object quantity ", "answer": "2"}],
    }
    write_json(folder / "Annotations_train/P0000_0002.json", annotation)
    row = {"image_id": "P0003_0002.png", "dataset": "RSBench", "question_id": 0}
    caption = {**row, "ground_truth": "A harbor.", "question": "Describe the image in detail", "type": "caption"}
    write_json(folder / "VRSBench_EVAL_Cap.json", [caption])
    questions = [
        {**row, "question": "Is there a ship?", "ground_truth": "Yes", "type": "object existence"},
        {**row, "question": "What color is it?", "ground_truth": "White", "type": "object color"},
    ]
    write_json(folder / "VRSBench_EVAL_vqa.json", questions)


def rsvqa(folder: Path, prefix: str, images: str, splits: dict[str, int]) -> None:
    """One image a split, with the id in ``splits``; each file lists the other images and questions as inactive."""
    for split, active in splits.items():
        rows: dict[str, list[dict[str, Any]]] = {"images": [], "questions": [], "answers": []}
        for number in splits.values():
            ids = [2 * number, 2 * number + 1]
            if number != active:
                rows["images"].append({"id": number, "active": False})
                rows["questions"] += [{"id": at, "active": False} for at in ids]
                rows["answers"] += [{"id": at, "active": False} for at in ids]
                continue
            rows["images"].append(
                {"id": number, "original_name": "S2A.tif", "sensor": "S2", "questions_ids": ids, "active": True}
            )
            texts = [("presence", "Is there a pond next to a  road?", "yes"), ("count", "How many roads?", "2203")]
            for at, (kind, question, answer) in zip(ids, texts):
                row = {"id": at, "date_added": 1.5, "people_id": 0, "active": True}
                fields = {"img_id": number, "type": kind, "question": question, "answers_ids": [at]}
                rows["questions"].append({**row, **fields})
                rows["answers"].append({**row, "question_id": at, "answer": answer})
        for kind, items in rows.items():
            write_json(folder / f"{prefix}_split_{split}_{kind}.json", {kind: items})
        image(folder / images / f"{active}.tif")


def rsvqa_lr(folder: Path) -> None:
    rsvqa(folder, "LR", "Images_LR", {"train": 0, "val": 7, "test": 3})


def rsvqa_hr(folder: Path) -> None:
    rsvqa(folder, "USGS", "Data", {"train": 0, "val": 7, "test": 3, "test_phili": 9639})


def rsivqa(folder: Path) -> None:
    """All five parts; of UCM, the images 1 to 3 are in the part that people wrote, 4 only in the other."""
    names = {"1.tif": "train", "2.tif": "val", "3.tif": "test", "4.tif": "train"}
    karpathy(folder / "UCM/dataset.json", folder / "UCM/images", names)
    karpathy(folder / "Sydney/dataset.json", folder / "Sydney/images", {"1.tif": "val"})
    karpathy(folder / "AID/dataset_rsicd.json", folder / "AID/images", {"00001.jpg": "test"})
    for name in ("DOTA/images/P0000.png", "DOTA/images/P0003.png", "HRRSD/images/00001.jpg"):
        image(folder / name)
    texts = {
        "UCM/ucm_res.txt": [
            "1.tif:What is the theme of this picture?farmland",
            "1.tif:Does this picture contain an airplane?no",
            "1.tif:How many  in the picture?zero",
            "1.tif:What is the location of the  in this picture?i cannot see it",
            "2.tif:How many boats in the picture?about fifty",
            "3.tif:What is the location of the boats in this picture?left and right",
            "3.tif:How many plants in the picture?i don't know",
        ],
        "UCM/ucm_vqa.txt": [f"{number}.tif:what is the theme of this picture?harbor" for number in (1, 2, 3, 4)],
        "Sydney/sydney_vqa.txt": ["1.tif:what is the theme of this picture?meadow"],
        "AID/rsicd_vqa.txt": ["00001.jpg:what is the theme of this picture?port"],
        "DOTA/dota_train_vqa2.txt": ["P0000: how many planes are there in this picture?21"],
        "DOTA/dota_val_vqa2.txt": ["P0003: does this picture contain plane?yes"],
        "HRRSD/opt_val_vqa.txt": ["00001: does this picture contain ship?no"],
    }
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def eurosat(folder: Path) -> None:
    """Without lists: a hash of the name says the split."""
    for scene, number in (("AnnualCrop", 1), ("AnnualCrop", 2), ("SeaLake", 10)):
        image(folder / f"2750/{scene}/{scene}_{number}.jpg")


OBJECTS = ["airplane", "bare-soil", "ship", "trees"]  # of the published 17


def ucm_multilabel(folder: Path) -> None:
    """Tab-separated, with a tab at the end of each line."""
    labels = {"agricultural00": "0101", "airplane07": "1000", "harbor99": "0011", "harbor98": "0010"}
    lines = ["\t".join(["IMAGE\\LABEL", *OBJECTS, ""])]
    for name, row in labels.items():
        lines.append("\t".join([name, *row, ""]))
        image(folder / f"UCMerced_LandUse/Images/{name[:-2]}/{name}.tif")
    (folder / "LandUse_Multilabeled.txt").write_text("\n".join(lines))
    names = {"1.tif": "train", "108.tif": "train", "1100.tif": "train", "1099.tif": "test"}
    karpathy(folder / "dataset.json", folder / "imgs", names)


def aid_multilabel(folder: Path) -> None:
    """One image of a test half that RSICD trains on, one that RSICD does not have."""
    labels = {"airport_1": "1000", "port_2": "0011", "port_3": "0010"}
    rows = [",".join(["IMAGE\\LABEL", *OBJECTS]), *(",".join([name, *row]) for name, row in labels.items())]
    for path in ("images_tr/airport/airport_1.jpg", "images_tr/port/port_3.jpg", "images_test/port/port_2.jpg"):
        image(folder / path)
    (folder / "multilabel.csv").write_text("\n".join(rows))
    names = {"airport_1.jpg": "test", "port_2.jpg": "train"}
    karpathy(folder / "dataset_rsicd.json", folder / "RSICD_images", names)


PUBLISHED: dict[str, Callable[[Path], None]] = {
    "rsicd": rsicd,
    "ucm": ucm,
    "sydney": ucm,  # published alike
    "nwpu": nwpu,
    "rsicap": rsicap,
    "rsieval": rsieval,
    "vrsbench": vrsbench,
    "rsvqa-lr": rsvqa_lr,
    "rsvqa-hr": rsvqa_hr,
    "rsivqa": rsivqa,
    "rsivqa-scenes": rsivqa,
    "eurosat": eurosat,
    "ucm-multilabel": ucm_multilabel,
    "aid-multilabel": aid_multilabel,
}

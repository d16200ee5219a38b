"""The paper's experiment, from published files and pretrained weights to the paper's table: docs/how-to/paper.md.

    python examples/paper.py rs-moe-1b --downloads DIR --instructblip DIR --llm DIR --output RUN

--downloads holds the published files of each dataset in a folder: RSICap, which is trained on, and for the scores
RSIEval, UCM_captions, Sydney_captions, RSICD, VRSBench, RSIVQA. One that is not there is left out; the table says so.

Read it from top to bottom: each step is an `rsmoe` command, printed as it runs. A finished step is skipped and a
stopped one goes on, so after a stop give the same command again. What is learned and for how long stands in
hub_configs/SIZE/training.yaml, lengths and beams in generation_config.json beside it.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from add_expert import with_expert  # beside this file

from modeling_rsmoe.data.aspects import split_aspects
from modeling_rsmoe.evaluation.report import read_report
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.utils.files import write_whole
from modeling_rsmoe.utils.tables import markdown_table


# Name of `rsmoe data convert` -> its folder in --downloads, and how its records call it. Beside RSICap only test
# splits are read, so nothing else is learned [paper: trained on RSICap alone, the other scores without fine-tuning].
DATASETS = {
    "rsicap": ("RSICap", "RSICap"),
    "rsieval": ("RSIEval", "RSIEval"),
    "ucm": ("UCM_captions", "UCM-Captions"),
    "sydney": ("Sydney_captions", "Sydney-Captions"),
    "rsicd": ("RSICD", "RSICD"),
    "vrsbench": ("VRSBench", "VRSBench"),
    "rsivqa": ("RSIVQA", "RSIVQA"),  # RSIVQA-UCM, RSIVQA-HRRSD: one dataset for each of its sources
}
CAPTIONS = ["rsieval", "ucm", "sydney", "rsicd", "vrsbench"]
ANSWERS = ["rsieval", "rsivqa"]  # not VRSBench's 37,409 questions: no figure of the paper about them is known
ABLATION = "ablation"  # begins the names of their reports
# [our decision] Half precision, and four images at once: with beams and experts these are 60 sequences.
EVALUATION = ["--dtype", "bfloat16", "--batch-size", "4"]
# The fourth expert of the ablation [our decision: the paper's is not known] learns the sentences that count.
FOURTH, FOURTH_INSTRUCTION = "number", "How many objects of each kind are in this image?"
NUMBERS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|several|many"
COUNTS = re.compile(rf"\b(\d+|({NUMBERS})(-\w+)?|\w+teen)\b", re.IGNORECASE)

# What was published, for the rows that it stands in. [A]: the authors' own abstract or code, [B]: a third party's
# summary of the paper. Those of others are from their papers; "fine-tuned": on that dataset, as this run is not.
SCORES = ["BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "accuracy"]
INTERVALS = ["CIDEr-D", "accuracy"]
BASELINES = {
    "constant": "the most frequent training caption",
    "nearest": "a caption of the most similar training images",
}
PUBLISHED = [
    ("RSIEval", "RS-MoE-7B [B]", {"CIDEr-D": 158.36}),
    ("RSIEval", "RSGPT-13B [B]", {"CIDEr-D": 149.32}),
    ("RSIEval: one stage", "RS-MoE-7B [B]", {"CIDEr-D": 98.21}),
    ("RSIEval: no router", "RS-MoE-7B, 55.85 lower [B]", {"CIDEr-D": 102.51}),
    *[(f"RSIEval: {few}", "three is best [B]", {}) for few in ("1 expert", "2 experts", "4 experts")],
    ("UCM-Captions", "RSGPT-13B, fine-tuned", dict(zip(SCORES, (86.12, 65.74, 42.21, 78.34, 333.23)))),
    ("Sydney-Captions", "RSGPT-13B, fine-tuned", dict(zip(SCORES, (82.26, 62.23, 41.37, 74.77, 273.08)))),
    ("RSICD", "RSGPT-13B, fine-tuned", dict(zip(SCORES, (70.32, 36.83, 30.10, 53.34, 102.94)))),
    ("RSIVQA: answers", "RS-MoE, another split [B]", {"accuracy": 89.12}),
]


def rsmoe(*words: object) -> None:
    """One command, in a process of its own, so that its memory is free afterwards. If it fails, so does the script."""
    print("  rsmoe", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "modeling_rsmoe.cli", *map(str, words)]).returncode
    if code:
        raise SystemExit(code)


def is_new(step: str, output: Path, is_finished: bool | None = None) -> bool:
    """Says which step comes, and whether there is anything to do."""
    is_finished = output.exists() if is_finished is None else is_finished
    print(f"{step}: {'finished before' if is_finished else output}", flush=True)
    return not is_finished


def is_trained(folder: Path) -> bool:
    file = folder / "training.json"
    return file.is_file() and json.loads(file.read_text())["finished"]


def names_in(file: Path, dataset: str) -> list[str]:
    """The dataset's names in a file of the data folder."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = dict.fromkeys(json.loads(line)["dataset"] for line in lines)
    return [name for name in names if name == dataset or name.startswith(f"{dataset}-")]


def add_fourth_aspect(captions: Path) -> None:
    """Give each training image its sentences by aspect, as training splits them, and those that count once more."""
    rows = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row["split"] == "train":
            aspects = split_aspects(row["captions"])
            sentences = [sentence for of_aspect in aspects.values() for sentence in of_aspect]
            row["aspects"] = aspects | {FOURTH: [sentence for sentence in sentences if COUNTS.search(sentence)]}
    write_whole(captions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def one_stage(training: dict) -> dict:
    """Both stages' modules, examples and steps in one [our decision: the paper's one-stage settings are not known]."""
    steps = {stage: training[stage]["max_steps"] for stage in ("stage1", "stage2")}
    total = sum(steps.values())
    what_learns = {"qformer": "full", "projection": "full", "language_model": "lora"}
    shares = {
        name: round(value * steps[stage] / total, 4)
        for stage in steps
        for name, value in training[stage].items()
        if name.endswith("_share") and name != "question_share"
    }
    return {**what_learns, **training["stage1"], **training["stage2"], **shares, "max_steps": total, "one_stage": True}


def table_of(outcomes: dict[str, Path | str], size: str) -> str:
    """Published and run here, row by row; of an outcome that is no report, the reason."""
    rows: list[list[str]] = []
    for title, outcome in outcomes.items():
        for _, whose, scores in [row for row in PUBLISHED if row[0] == title]:
            cells = [f"{scores[name]:.2f}" if name in scores else "" for name in SCORES]
            rows.append([title, f"published: {whose}", "", *cells])
        if isinstance(outcome, str):
            rows.append([title, f"**not run**: {outcome}", "", *[""] * len(SCORES)])
            continue
        result = read_report(outcome)["results"][-1]  # of several sources of questions: all together
        scored = {f"**run here**: {size}": result["scores"]}
        if ABLATION not in outcome.name:
            scored |= {f"run here: {text}": result["baselines"].get(name, {}) for name, text in BASELINES.items()}
        for whose, entries in scored.items():
            cells = ["{value:.2f}".format(**entries[name]) if name in entries else "" for name in SCORES]
            for place, name in enumerate(SCORES):
                if name in INTERVALS and name in entries:
                    cells[place] += " [{low:.1f}, {high:.1f}]".format(**entries[name])
            if entries:
                rows.append([title, whose, f"{result['items']:,}", *cells])
    header = ["test set", "whose", "items", *("CIDEr" if name == "CIDEr-D" else name for name in SCORES)]
    return markdown_table(header, rows, texts=2)


def main(argv: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="rs-moe-1b, rs-moe-3b, rs-moe-7b, or a folder like theirs in hub_configs")
    parser.add_argument("--downloads", type=Path, required=True, help="a folder for each dataset's published files")
    parser.add_argument("--instructblip", type=Path, required=True, help="ViT and Q-Former: an InstructBLIP")
    parser.add_argument("--llm", type=Path, required=True, help="Llama-3.2-1B, Llama-3.2-3B or Vicuna-7B v1.5")
    parser.add_argument("--output", type=Path, required=True, help="data, checkpoints, reports and table")
    given = parser.parse_args(argv)
    settings = Path(given.size) if Path(given.size).is_dir() else HUB_CONFIGS / given.size
    downloads, run, size = given.downloads, given.output, settings.name
    config = settings / "training.yaml"
    if not config.is_file():
        parser.error(f"there is no {config}; give rs-moe-1b, rs-moe-3b or rs-moe-7b")
    if not (downloads / "RSICap").is_dir():
        parser.error(f"there is no {downloads / 'RSICap'}, which is trained on: put its published files there")
    data, reports = run / "data", run / "reports"
    captions, questions = data / "captions.jsonl", data / "vqa.jsonl"

    # 1. The data: one folder, RSICap to learn, the others' test splits to score.
    missing = {}
    for key, (folder, dataset) in DATASETS.items():
        if not (downloads / folder).is_dir():
            missing[key] = f"there is no {downloads / folder}"
            print(f"{dataset}: skipped, {missing[key]}")
            continue
        needed = ([captions] if key != "rsivqa" else []) + ([questions] if key in ANSWERS else [])
        if is_new(dataset, data, all(names_in(file, dataset) for file in needed)):
            split = "train" if key == "rsicap" else "test"
            rsmoe("data", "convert", key, downloads / folder, data, "--split", split)
    if is_new("sentences of a fourth expert", captions, f'"{FOURTH}": [' in captions.read_text(encoding="utf-8")):
        add_fourth_aspect(captions)

    # 2. The start: EVA ViT-g/14 and Q-Former of InstructBLIP, and the LLM [paper].
    start = run / "start"
    if is_new("start", start):
        rsmoe("convert", given.size, "--instructblip", given.instructblip, "--llm", given.llm, "--output", start)

    # 3. Two stages [paper]: the vision-language encoder and the base LM, then router and experts.
    train = ["--config", config, "--data", data, "--resume"]
    stage1, stage2 = run / "stage1", run / "stage2"
    if is_new("stage 1", stage1, is_trained(stage1)):
        rsmoe("train", "stage1", *train, "--model", start, "--output", stage1)
    if is_new("stage 2", stage2, is_trained(stage2)):
        rsmoe("train", "stage2", *train, "--model", stage1, "--output", stage2)

    # 4. The scores. Captions are rewritten by the base LM out of the expert texts: no reranker [our decision].
    outcomes: dict[str, Path | str] = {}  # reports, or why there is none

    def score(title: str, key: str, model: Path, task: str, name: str, *options: object) -> None:
        names = names_in(captions if task == "captioning" else questions, DATASETS[key][1])
        if not names:
            outcomes[title] = missing.get(key, f"no record of its test split in {downloads / DATASETS[key][0]}")
            print(f"{title}: skipped, {outcomes[title]}")
            return
        outcomes[title] = report = reports / f"{name}.json"
        if is_new(title, report):
            chosen = [word for dataset in names for word in ("--dataset", dataset)]
            words = ["--data", data, "--task", task, *chosen, "--output", report, *EVALUATION, *options]
            rsmoe("evaluate", model, *words)

    for key in CAPTIONS:
        score(DATASETS[key][1], key, stage2, "captioning", f"captions-{key}")
    for key in ANSWERS:
        score(f"{DATASETS[key][1]}: answers", key, stage2, "vqa", f"answers-{key}")
    main_reports = [report for report in outcomes.values() if isinstance(report, Path)]

    # 5. Ablations, on RSIEval [paper]. An expert learns apart from the others, from examples of its own, so fewer of
    #    them are the same experts without the rest [our decision]. A fourth one takes a training of stage 2.
    def ablation(title: str, name: str, model: Path, *options: object) -> None:
        score(f"RSIEval: {title}", "rsieval", model, "captioning", f"{ABLATION}-{name}", *options)

    ablation("no image", "no-image", stage2, "--baseline", "no-image")
    ablation("base LM alone", "base", stage2, "--system", "base")
    ablation("no router", "no-router", stage2, "--router", "none")
    ablation("1 expert", "1-expert", stage2, "--system", "full:theme")
    ablation("2 experts", "2-experts", stage2, "--system", "full:theme,object")
    if "rsieval" not in missing:
        started, four = run / "stage1-4-experts", run / "4-experts"
        if is_new("a fourth expert", started, is_trained(started)):
            with_expert(stage1, started, FOURTH, FOURTH_INSTRUCTION)
        if is_new("stage 2 with four experts", four, is_trained(four)):
            rsmoe("train", "stage2", *train, "--model", started, "--output", four)
        single, recipe = run / "one-stage", run / "one-stage.yaml"
        if is_new("one stage", single, is_trained(single)):
            write_whole(recipe, yaml.safe_dump({"stage2": one_stage(yaml.safe_load(config.read_text()))}))
            words = ["--config", recipe, *train[2:], "--model", start, "--output", single]
            rsmoe("train", "stage2", *words)
    ablation("4 experts", "4-experts", run / "4-experts")
    ablation("one stage", "one-stage", run / "one-stage")

    # 6. The model's card, and the table.
    card, newest = stage2 / "README.md", max((report.stat().st_mtime for report in main_reports), default=0.0)
    if main_reports and is_new("card", card, card.is_file() and card.stat().st_mtime > newest):
        rsmoe("card", stage2, *[word for report in main_reports for word in ("--scores", report)])
    table = table_of(outcomes, size)
    write_whole(run / "table.md", f"{table}\n")
    print(f"\n{table}\n\nWritten: {run / 'table.md'}")
    return table


if __name__ == "__main__":
    main()

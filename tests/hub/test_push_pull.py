"""Push and pull over HTTP, in processes of their own, against a Hub on this machine (hub_server.py).

The first push, the first pull and the first command run in fresh processes, the rest in forked ones (tests/forks.py).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.hub.card import write_card
from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.utils.files import sha256_of

from ..forks import Forked, run_forked
from ..tiny import tiny_model
from .hub_server import TOKEN, LocalHub


pytestmark = pytest.mark.slow


CLIENT = Path(__file__).with_name("hub_client.py")
ID, PRIVATE = "tester/rs-moe.tiny-1", "tester/secret"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as hub:
        yield hub


def environment(hub: LocalHub, home: Path, token: str | None) -> dict[str, str]:
    hidden = ("HF_", "HUGGING", "PYTHONPATH", "TRANSFORMERS_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    kept |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return kept | ({"HF_TOKEN": token} if token else {})


def words(*command: object) -> tuple[list[str], dict[str, str]]:
    """The program and what it adds to the environment."""
    action, source, target, arguments = command
    # Pulling is isolated: neither this folder nor PYTHONPATH leads to the package; pushing needs it.
    paths = {} if action == "pull" else {"PYTHONPATH": str(ROOT)}
    return [str(CLIENT), str(action), str(source), str(target), json.dumps(arguments)], paths


def start(hub: LocalHub, home: Path, *command: object, token: str | None = TOKEN, **changes: str) -> Forked:
    home.mkdir(exist_ok=True, parents=True)
    program, paths = words(*command)
    return Forked(program, environment(hub, home, token) | paths | changes, home)


def result(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run(hub: LocalHub, home: Path, *command: object, token: str | None = TOKEN, offline: bool = False) -> dict:
    changes = {"HF_HUB_OFFLINE": "1"} if offline else {}
    return result(start(hub, home, *command, token=token, **changes).wait())


def fresh(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    """A process of its own that imports all that it needs."""
    command = [sys.executable, *words]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def run_fresh(hub: LocalHub, home: Path, *command: object) -> dict:
    home.mkdir(exist_ok=True, parents=True)
    program, paths = words(*command)
    isolated = [] if paths else ["-I"]
    return result(fresh(environment(hub, home, TOKEN) | paths, *isolated, *program))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each returns, two side by side.

    They only start processes: `from_pretrained` in two threads at a time leaves transformers without tied weights.
    """
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("hub") / "tiny"))
    write_card(read_facts(folder), folder)
    return folder


@pytest.fixture(scope="module")
def pushed(hub, folder, tmp_path_factory) -> dict:
    """A first revision in shards, with the experts alone in subfolders."""
    home = tmp_path_factory.mktemp("pusher")
    model = RSMoEForConditionalGeneration.from_pretrained(folder)
    for name in ("theme", "object"):
        model.model.expert(name).save_pretrained(home / "parts" / name)
    arguments = {"card": True, "max_shard_size": "120KB", "parts": str(home / "parts")}
    found = run_fresh(hub, home, "push", folder, ID, arguments)
    assert "error" not in found, found
    return found


@cache
def expected(folder: Path) -> dict[str, torch.Tensor]:
    model = RSMoEForConditionalGeneration.from_pretrained(folder).eval()
    processor = RSMoEProcessor.from_pretrained(folder)
    pixels = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = processor(images=pixels, text="what?", return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    with torch.no_grad():
        tensors = {"logits": model(inputs["input_ids"]).logits, "sequences": outputs.sequences}
    return {**tensors, "qformer_input_ids": inputs["qformer_input_ids"]}


def pulled(hub: LocalHub, home: Path, id: str = ID, **arguments: object) -> dict:
    return run(hub, home, "pull", id, home / "out", arguments)


def assert_equal(found: dict, home: Path, folder: Path, name: str = "out") -> None:
    assert found.get("class") == "RSMoEForConditionalGeneration", found
    assert found["module"].startswith("transformers_modules.tester.")
    assert found["qformer_tokenizer"] == "BertTokenizer"
    tensors = load_file(home / f"{name}.safetensors")
    for name, value in expected(folder).items():
        assert torch.equal(tensors[name], value), name


def assert_pulled(hub: LocalHub, home: Path, folder: Path, id: str = ID, **arguments: object) -> None:
    assert_equal(pulled(hub, home, id, **arguments), home, folder)


def other_weights(folder: Path, target: Path, seed: int) -> Path:
    tiny_model(seed).save_pretrained(target)
    RSMoEProcessor.from_pretrained(folder).save_pretrained(target)
    return target


def test_model_processor_and_code(hub, pushed, folder, tmp_path):
    """Sharded weights, large ones in parts and small ones in one piece; code, processor, card."""
    home = tmp_path / "home"
    assert_equal(run_fresh(hub, home, "pull", ID, home / "out", {}), home, folder)
    files = hub.repos[ID].commits[pushed["commit"]]
    shards = [name for name in files if name.startswith("model-")]
    assert len(shards) > 2 and all(files[name][1] for name in shards)
    assert {"config.json", "modeling_rsmoe.py", "processing_rsmoe.py", "processor_config.json", "README.md"} <= set(
        files
    )
    assert files["README.md"][0] == sha256_of(
        folder / "README.md"
    )  # the card that was pushed first, not an empty form
    assert "qformer_tokenizer/tokenizer.json" in files and not files["config.json"][1]
    puts = [line for line in hub.asked if line.startswith("PUT /lfs/")]
    assert any("/part/" in line for line in puts) and any("/part/" not in line for line in puts)
    assert any(line.endswith("/complete") for line in hub.asked) and "POST /lfs-verify" in hub.asked


def test_offline_after_a_pull(hub, pushed, folder, tmp_path):
    """The cache is enough, and gives the Q-Former its own tokenizer (`assert_equal`): after a pull, and after
    `hf download`, with HF_HUB_OFFLINE and with `local_files_only`."""
    pulled_home, downloaded_home = tmp_path / "pulled", tmp_path / "downloaded"
    assert_pulled(hub, pulled_home, folder)
    done = fresh(environment(hub, downloaded_home, TOKEN), "-m", "huggingface_hub.cli.hf", "download", ID)
    assert done.returncode == 0, done.stderr
    for home in (pulled_home, downloaded_home):
        # One after the other: transformers' cache of code is not made for two processes that fill it.
        found = run(hub, home, "pull", ID, home / "offline", {}, offline=True)
        assert_equal(found, home, folder, "offline")
        found = run(hub, home, "pull", ID, home / "local", {"local_files_only": True})
        assert_equal(found, home, folder, "local")


def test_saving_with_push_to_hub(hub, folder, tmp_path):
    """`save_pretrained(push_to_hub=True)` sends the Q-Former tokenizer's config.json too."""
    code = (
        "import sys; from modeling_rsmoe import RSMoEProcessor\n"
        "processor = RSMoEProcessor.from_pretrained(sys.argv[1])\n"
        "processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id='tester/saved')"
    )
    env = environment(hub, tmp_path, TOKEN) | {"PYTHONPATH": str(ROOT)}
    done = run_forked(["-c", code, folder, tmp_path / "again"], env)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["tester/saved"]
    files = repo.commits[repo.refs["main"]]
    assert {"qformer_tokenizer/config.json", "qformer_tokenizer/tokenizer.json", "processor_config.json"} <= set(files)


def test_one_expert_alone(hub, pushed, folder, tmp_path):
    before = len(hub.asked)
    found = run(hub, tmp_path / "home", "pull", ID, tmp_path / "expert", {"subfolder": "experts/object"})
    assert found.get("class") == "RSMoEExpert", found
    weights = RSMoEForConditionalGeneration.from_pretrained(folder).model.expert("object").state_dict()
    tensors = load_file(tmp_path / "expert.safetensors")
    assert tensors.keys() == weights.keys() and all(torch.equal(tensors[key], weights[key]) for key in weights)
    large = [line for line in hub.asked[before:] if line.startswith("GET /lfs/")]
    assert len(large) == 1  # nothing else of the repository was fetched


def test_expert_with_the_package(hub, pushed, folder, tmp_path):
    code = (
        "import sys; from modeling_rsmoe import RSMoEExpert\n"
        "expert = RSMoEExpert.from_pretrained(sys.argv[1], subfolder='experts/theme')\n"
        "print(type(expert).__module__, expert.config.r)"
    )
    env = environment(hub, tmp_path, TOKEN) | {"PYTHONPATH": str(ROOT)}
    done = run_forked(["-c", code, ID], env)
    assert done.stdout.split() == ["modeling_rsmoe.experts_rsmoe", "4"], done.stderr


def test_pinned_revisions(hub, pushed, folder, tmp_path):
    """A pinned commit stays what it was after the next push."""
    newer = other_weights(folder, tmp_path / "newer", 5)
    found = run(hub, tmp_path / "pusher", "push", newer, ID, {"commit_message": "newer"})
    assert found["commit"] != pushed["commit"]
    pin = {"revision": pushed["commit"], "code_revision": pushed["commit"]}
    old, new = at_once(lambda: pulled(hub, tmp_path / "old", **pin), lambda: pulled(hub, tmp_path / "new"))
    assert_equal(old, tmp_path / "old", folder)
    assert_equal(new, tmp_path / "new", newer)
    assert pushed["commit"] in old["module"]  # the code is of that commit too
    hub.repos[ID].refs["main"] = pushed["commit"]
    found = run(hub, tmp_path / "pusher", "push", newer, ID, {"revision": "trial"})  # a branch, which is made
    assert hub.repos[ID].refs["trial"] == found["commit"] and hub.repos[ID].refs["main"] == pushed["commit"]


def test_an_upload_cut_off_leaves_the_last_revision(hub, pushed, folder, tmp_path):
    newer, last = other_weights(folder, tmp_path / "newer", 6), hub.repos[ID].refs["main"]
    home = tmp_path / "pusher"
    hub.reached.clear()
    hub.stall.set()
    try:
        process = start(hub, home, "push", newer, ID, {})
        assert hub.reached.wait(120), "no large file was sent"
        process.kill()
        done = process.wait()
    finally:
        hub.stall.clear()
    assert done.returncode == -9 and hub.repos[ID].refs["main"] == last
    assert_pulled(hub, tmp_path / "home", folder)
    found = run(hub, home, "push", newer, ID, {})  # again, whole
    assert_pulled(hub, tmp_path / "again", newer, revision=found["commit"], code_revision=found["commit"])
    hub.repos[ID].refs["main"] = last


def test_private_repository(hub, folder, tmp_path):
    found = run(hub, tmp_path / "pusher", "push", folder, PRIVATE, {"private": True})
    assert "commit" in found and hub.repos[PRIVATE].private
    owner, stranger, given = at_once(
        lambda: pulled(hub, tmp_path / "owner", PRIVATE),
        lambda: run(hub, tmp_path / "stranger", "pull", PRIVATE, tmp_path / "out", {}, token=None),
        lambda: run(hub, tmp_path / "given", "pull", PRIVATE, tmp_path / "given.out", {"token": TOKEN}, token=None),
    )
    assert_equal(owner, tmp_path / "owner", folder)
    assert stranger["error"] == "OSError" and "private repository" in stranger["message"]
    assert given.get("class") == "RSMoEForConditionalGeneration", given


def test_errors_in_words(hub, pushed, folder, tmp_path):
    out = tmp_path / "out"
    unknown, no_revision, wrong_token = at_once(
        lambda: run(hub, tmp_path / "unknown", "pull", "tester/none", out, {}),
        lambda: run(hub, tmp_path / "revision", "pull", ID, out, {"revision": "v9"}),
        lambda: run(hub, tmp_path / "token", "push", folder, ID, {}, token="hf_wrong"),
    )
    assert unknown["error"] == no_revision["error"] == "OSError"
    assert "tester/none is not a local folder and is not a valid model identifier" in unknown["message"]
    assert "v9 is not a valid git identifier" in no_revision["message"]
    assert wrong_token["error"] == "HfHubHTTPError"
    assert "Invalid credentials in Authorization header" in wrong_token["message"]
    assert not out.with_suffix(".safetensors").exists()


def test_command_line(hub, pushed, folder, tmp_path):
    """`hf upload`, then our commands by the repository's name; its errors in one line."""
    got = tmp_path / "got"
    from PIL import Image

    Image.new("RGB", (30, 30), "green").save(tmp_path / "tile.png")
    caption = ("-m", "modeling_rsmoe.cli", "caption", str(tmp_path / "tile.png"), "--model")
    env, paths = environment(hub, tmp_path, TOKEN), {"PYTHONPATH": str(ROOT)}
    done = fresh(env | paths, *caption, ID, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == ID, done.stderr
    for name, token in (("tester/none", TOKEN), (ID, "hf_wrong")):
        done = run_forked([*caption, name], environment(hub, tmp_path / "empty", token) | paths)
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert done.returncode == 2 and "the Hub did not give a checkpoint of that name (" in line
    for command in (["upload", "tester/by-command", folder], ["download", "tester/by-command", "--local-dir", got]):
        done = fresh(env, "-m", "huggingface_hub.cli.hf", *map(str, command))
        assert done.returncode == 0, done.stderr
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert (got / file.relative_to(folder)).read_bytes() == file.read_bytes()

"""Experts as PEFT adapters and back, as plain LLMs and as a bundle for vLLM: the same logits and tokens."""

import importlib.util
import json
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.cli import app
from modeling_rsmoe.hub.adapters import adapters_of, load_peft, save_peft, serve_line
from modeling_rsmoe.prompting_rsmoe import Prompt

from ..tiny import INSTRUCTIONS, tiny_config, tiny_model, tiny_processor


ADAPTERS = ["router", "theme", "object", "relation"]
TEXT = "what?"


def run(*arguments) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def tokens() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(3, 250, (2, 9))


def logits_as(model, adapter: int) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(), adapter_ids=torch.full((2,), adapter)).logits


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to float32's rounding in another order of products; adapters differ by more than 0.1."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---- PEFT


@pytest.fixture(scope="module")
def peft_folder(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peft") / "out"
    result = run("export", "peft", checkpoint, "--output", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(folder / name) for name in ["base", *ADAPTERS]]
    return folder


@pytest.mark.parametrize(("adapter", "name"), list(enumerate(ADAPTERS, start=1)))
def test_peft_gives_the_same_logits(checkpoint, peft_folder, adapter, name):
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint).eval()
    base = AutoModelForCausalLM.from_pretrained(peft_folder / "base").eval()
    block = logits_as(model, 0)
    with torch.no_grad():
        assert_same(base(tokens()).logits, block)
        adapted = PeftModel.from_pretrained(base, peft_folder / name).eval()(tokens()).logits
        found = AutoPeftModelForCausalLM.from_pretrained(peft_folder / name).eval()(tokens()).logits
    expected = logits_as(model, adapter)
    assert (expected - block).abs().max() > 0.1
    assert_same(adapted, expected)
    assert_same(found, expected)


def test_there_and_back(checkpoint, peft_folder):
    """Exactly the same weights, into another model's expert."""
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint).eval()
    expected, kept = logits_as(model, 4), logits_as(model, 2)
    weights = {key: value.clone() for key, value in model.model.expert("relation").state_dict().items()}
    model.model.expert("relation").reset_to(model.model.language_model)
    assert not torch.allclose(logits_as(model, 4), expected, atol=0.1)
    load_peft(model, "relation", peft_folder / "relation")
    assert all(torch.equal(value, weights[key]) for key, value in model.model.expert("relation").state_dict().items())
    assert torch.equal(logits_as(model, 2), kept)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_as_a_new_expert(checkpoint, tmp_path, rslora):
    """Of a lower rank, another scaling, fewer layers: PEFT's own logits, and every other adapter's as before."""
    model, processor = RSMoEForConditionalGeneration.from_pretrained(checkpoint), tiny_processor()
    config = LoraConfig(
        r=3, lora_alpha=5, use_rslora=rslora, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]
    )
    theirs = get_peft_model(model.plain_llm(), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.5)
        expected = theirs(tokens()).logits
    theirs.save_pretrained(tmp_path)
    before = [logits_as(model.eval(), adapter) for adapter in range(5)]
    model.add_expert("ships", processor.add_expert("ships", "Which ships?"))
    load_peft(model, "ships", tmp_path)
    vocabulary = expected.shape[-1]
    assert (expected - before[0]).abs().max() > 0.1
    assert_same(logits_as(model, 5)[..., :vocabulary], expected)
    for adapter, logits in enumerate(before):
        assert_same(logits_as(model, adapter)[..., :vocabulary], logits)
    model.save_pretrained(tmp_path / "whole")
    again = RSMoEForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    assert torch.equal(logits_as(again, 5), logits_as(model, 5))
    free = [pair.lora_A for pair in model.model.expert("ships").modules() if hasattr(pair, "lora_A")]
    assert all(row.any() for matrix in free for row in matrix)  # directions that are filled up can still learn


def adapter(folder: Path, peft_folder: Path, weights: dict | None = None, **settings) -> Path:
    """A copy of the adapter `theme` with other settings and weights."""
    folder.mkdir()
    config = json.loads((peft_folder / "theme" / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {**load_file(peft_folder / "theme" / "adapter_model.safetensors"), **(weights or {})},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({"r": 5}, {}, "has rank 5; this model's experts have 4"),
        ({"use_dora": True}, {}, "use_dora is True"),
        ({"bias": "all"}, {}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 2}}, {}, "rank_pattern is"),
        ({"peft_type": "IA3"}, {}, "adapter"),
        ({}, {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, "lm_head.lora_A.weight is of no layer"),
        ({}, {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}, "of no layer"),
        ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 31)}, "has shape"),
        (
            {},
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.full((4, 32), torch.inf)},
            "finite",
        ),
    ],
)
def test_what_cannot_be_held_exactly_is_refused(peft_folder, tmp_path, settings, weights, message):
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RSMoEError, match=message):
        load_peft(model, "theme", adapter(tmp_path / "bad", peft_folder, weights, **settings))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_wrong_input(peft_folder, tmp_path):
    model = tiny_model()
    with pytest.raises(RSMoEError, match="Unknown expert 'ships'; this model has router, theme, object, relation"):
        load_peft(model, "ships", peft_folder / "theme")
    with pytest.raises(RSMoEError, match="has no adapter_config.json"):
        load_peft(model, "theme", peft_folder / "base")
    pickled = adapter(tmp_path / "pickled", peft_folder)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(RSMoEError, match="pickles .* are not opened"):
        load_peft(model, "theme", pickled)
    full = tiny_model(config=tiny_config(expert_config={"expert_type": "full"}))
    for call in (
        lambda: save_peft(full, "theme", tmp_path / "f"),
        lambda: load_peft(full, "theme", peft_folder / "theme"),
    ):
        with pytest.raises(RSMoEError, match="type 'full'"):
            call()
    assert not (tmp_path / "f").exists()


# ---- plain LLMs


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_plain_llms(tmp_path, kind):
    model = tiny_model(config=tiny_config(expert_config={"expert_type": kind}))
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    result = run("export", "llm", tmp_path / "model", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for adapter, name in enumerate(ADAPTERS, start=1):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name).eval()
        assert type(plain).__name__ == "LlamaForCausalLM"
        with torch.no_grad():
            assert_same(plain(tokens()).logits, logits_as(model, adapter))
        assert "<object>" in AutoTokenizer.from_pretrained(tmp_path / "out" / name).get_vocab()


# ---- a server of many adapters


@pytest.fixture(scope="module")
def vllm_folder(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "out"
    result = run("export", "vllm", checkpoint, "--output", folder, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == (folder / "serve.sh").read_text().splitlines()[1]
    return folder


@pytest.fixture(scope="module")
def client(vllm_folder):
    """The exported file itself, not the package's module."""
    spec = importlib.util.spec_from_file_location("exported_client", vllm_folder / "vllm_client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image(seed: int) -> torch.Tensor:
    return torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(seed))


def test_a_peft_batch_over_prompt_embeddings_gives_our_tokens(checkpoint, vllm_folder, client):
    """Prompts of the base LM, the router and two experts, of different lengths, in one batch: what a server does."""
    prompts = {
        "__base__": Prompt.base(TEXT),
        "router": Prompt.router("theme", TEXT),
        "object": Prompt.for_expert("object", "how many?", INSTRUCTIONS["object"]),
        "relation": Prompt.for_expert("relation", "where is it?", INSTRUCTIONS["relation"]),
    }
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = RSMoEProcessor.from_pretrained(checkpoint)
    images = [image(seed) for seed in range(4)]
    inputs = processor(images=images, text=list(prompts.values()), expert_inputs=False, return_tensors="pt")
    rendered = [processor.render(prompt) for prompt in prompts.values()]  # as other libraries hand them over
    same = processor(images=images, text=rendered, expert_inputs=False, return_tensors="pt")
    assert all(torch.equal(inputs[name], same[name]) for name in inputs)
    settings = {"max_new_tokens": 12, "do_sample": False}
    ours = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]

    embeddings = client.PromptEmbeddings(vllm_folder)
    sequences = [embeddings(embeddings.encode(image), prompt) for image, prompt in zip(images, prompts.values())]
    width = max(map(len, sequences))
    padded = [
        torch.cat([sequence.new_zeros(width - len(sequence), sequence.shape[1]), sequence]) for sequence in sequences
    ]
    embeds = torch.stack(padded)
    mask = torch.stack([torch.arange(width) >= width - len(sequence) for sequence in sequences]).long()
    base = AutoModelForCausalLM.from_pretrained(vllm_folder / "base")
    served = PeftModel.from_pretrained(base, vllm_folder / "adapters" / "router", adapter_name="router")
    for name in ADAPTERS[1:]:
        served.load_adapter(vllm_folder / "adapters" / name, adapter_name=name)
    batch = {"inputs_embeds": embeds, "attention_mask": mask, "adapter_names": list(prompts)}
    theirs = served.eval().generate(**batch, **settings)
    assert torch.equal(theirs, ours)
    assert len({tuple(sequence.tolist()) for sequence in ours}) == 4 and ours.shape[1] > 4
    by_base = served.generate(**batch | {"adapter_names": ["__base__"] * 4}, **settings)
    assert all(not torch.equal(by_base[index], theirs[index]) for index in range(1, 4))


class Server(BaseHTTPRequestHandler):
    asked: list[dict] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.asked.append({"path": self.path, **body})
        answer = json.dumps({"choices": [{"text": f" by {body['model']}"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


def test_client_asks_router_experts_and_llm(vllm_folder, client, tmp_path, monkeypatch, capsys):
    from PIL import Image

    Image.new("RGB", (30, 30), "green").save(tmp_path / "tile.png")
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen = []
    call = client.PromptEmbeddings.__call__

    def record(self, image_embeds, prompt):
        seen.append(prompt.text)
        return call(self, image_embeds, prompt)

    monkeypatch.setattr(client.PromptEmbeddings, "__call__", record)
    try:
        client.main(
            [str(tmp_path / "tile.png"), "--text", TEXT, "--server", f"http://127.0.0.1:{server.server_port}/v1"]
        )
    finally:
        server.shutdown()
        server.server_close()
    prediction = json.loads(capsys.readouterr().out)
    names = ADAPTERS[1:]
    assert prediction["text"] == "by base" and prediction["expert_texts"] == {name: f"by {name}" for name in names}
    assert [body["model"] for body in Server.asked] == ["router"] * 3 + names + ["base"]
    assert {body["path"] for body in Server.asked} == {"/v1/completions"}
    assert all(
        b64decode(body["prompt_embeds"]).startswith(b"PK") and body["temperature"] == 0 for body in Server.asked
    )
    asked = [f"<router> {name}: {TEXT}" for name in names] + [f"<{name}> by router" for name in names]
    assert seen == [*asked, f"{TEXT}\ntheme: by theme\nobject: by object\nrelation: by relation"]


def test_client_and_package_write_prompts_alike():
    """The client has no wordings of its own: it takes those of the processor's code."""
    from modeling_rsmoe.hub import vllm_client

    seen = []

    class Embeddings:
        processor = tiny_processor()

        def encode(self, image):
            return torch.zeros(1, 1, 1)

        def __call__(self, image_embeds, prompt):
            seen.append(prompt)
            return torch.zeros(1, 1)

    answers = iter(["p", "q", "", "a", "", "c", "all"])
    ask, vllm_client.ask = vllm_client.ask, lambda *arguments: next(answers)
    try:
        vllm_client.caption(Embeddings(), None, TEXT, "")
    finally:
        vllm_client.ask = ask
    names, fixed = ADAPTERS[1:], Embeddings.processor.expert_instructions["relation"]
    expected = [Prompt.router(name, TEXT) for name in names]
    expected += [Prompt.for_expert(name, prompt, INSTRUCTIONS[name]) for name, prompt in zip(names, ["p", "q", fixed])]
    assert seen == [*expected, Prompt.rewrite(TEXT, {"theme": "a", "object": "", "relation": "c"})]


def test_serve_line(tmp_path):
    line = serve_line(tmp_path / "a b", {"router": 2, "theme": 12})
    assert line.startswith(
        f"vllm serve '{tmp_path}/a b/base' --served-model-name base --enable-prompt-embeds --enable-lora"
    )
    assert "--max-lora-rank 16 --max-loras 2" in line and line.endswith(f"'theme={tmp_path}/a b/adapters/theme'")
    with pytest.raises(RSMoEError, match="rank 600 is more than vLLM takes"):
        serve_line(tmp_path, {"theme": 600})


def test_refused_and_nothing_left(checkpoint, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    result = run("export", "vllm", checkpoint, "--output", tmp_path / "there")
    assert result.exit_code == 2 and "exists: choose another folder" in result.stderr
    result = run("export", "peft", checkpoint, "--output", tmp_path / "new", "--dtype", "int8")
    assert result.exit_code == 2 and "unknown dtype 'int8'" in result.stderr
    tiny_model(config=tiny_config(expert_config={"expert_type": "full"})).save_pretrained(tmp_path / "full")
    tiny_processor().save_pretrained(tmp_path / "full")
    result = run("export", "peft", tmp_path / "full", "--output", tmp_path / "new")
    assert result.exit_code == 2 and "export it as a plain LLM" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "there"]
    assert list(adapters_of(tiny_model())) == ADAPTERS and "exported_client" not in sys.modules

"""Tensor parallelism: two processes that share the model's layers say what one says."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import tiny_config, tiny_model, tiny_processor


pytestmark = pytest.mark.slow


DRIVER = """
import os
import sys
import torch
import torch.distributed as dist
from PIL import Image
from transformers.distributed import DistributedConfig
from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor

torch.set_num_threads(1)
child = os.fork()  # here, so that the imports are paid once
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if child else "1"

for folder in sys.argv[1:]:
    shared = RSMoEForConditionalGeneration.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2))
    alone = RSMoEForConditionalGeneration.from_pretrained(folder)
    processor = RSMoEProcessor.from_pretrained(folder)
    layer = shared.model.language_model.layers[0]
    assert layer.self_attn.q_proj.weight.to_local().shape == (16, 32), "the decoder is not shared"
    expert = shared.model.experts["theme"].layers[0]
    if alone.config.expert_config.expert_type == "full":
        assert expert.mlp.down_proj.weight.to_local().shape == (32, 24), "the expert is not shared"
    else:
        assert expert.self_attn.q_proj_lora.lora_B.to_local().shape == (16, 4), "the expert is not shared"
        assert expert.mlp.down_proj_lora.lora_A.to_local().shape == (4, 24), "the expert is not shared"

    images = [Image.radial_gradient("L"), Image.linear_gradient("L")]
    texts = ["Describe.", "<router> theme: hello", "<theme> what?", "<relation> where?"]
    rows = processor(images=images * 2, text=list(map(processor.render, texts)), return_tensors="pt")
    whole = processor(images=images, text=["Describe.", "What is it now?"], return_tensors="pt")
    with torch.no_grad():
        ours, theirs = shared(**rows).logits, alone(**rows).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours[1:, -1] - ours[0, -1]).abs().amax(-1).min() > 1, "all adapters read the same"
    assert torch.equal(shared.generate(**whole), alone.generate(**whole))
    if alone.config.expert_config.expert_type == "lora":
        try:
            shared(**rows)
            raise SystemExit("a gradient would have been wrong")
        except RSMoEError as error:
            assert "Tensor parallelism is for inference" in str(error)
dist.destroy_process_group()
os.write(1, b"equal ")  # in one piece: two processes write
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    made = []
    for kind in ("lora", "full"):
        folder = tmp_path_factory.mktemp(kind)
        config = tiny_config(expert_config={"expert_type": kind}, router_config={"expert_type": kind})
        tiny_model(config=config).save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
        made.append(folder)
    return made


def test_two_processes_say_what_one_says(folders):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "2"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, folders)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=180)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # one that waits for a partner that failed
    assert process.returncode == 0, stderr
    assert stdout.split() == ["equal", "equal"]


def test_every_rule_of_the_plan_names_something():
    """Also those that transformers makes from the parts' own plans."""
    import re

    model = tiny_model()
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in [*model.named_modules(), *model.named_parameters()]}
    assert model.tp_plan.keys() <= names and model.supports_tp_plan
    split = [rule for rule in model.tp_plan if rule.startswith("model.experts.object.")]
    assert len(split) == 7 and all(rule.endswith(("lora_A", "lora_B")) for rule in split)

"""What the loading of a checkpoint runs into."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference.encoder import load_encoder
from modeling_rsmoe.inference.loading import loading_errors


def test_a_lost_weight_is_named(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "tiny"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.encoder.query_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RSMoEError, match="tiny lacks 1 weights, such as query_tokens.weight: assemble or download it again"
    ):
        load_encoder(folder)


@pytest.mark.slow
def test_a_processor_alone_does_not_ask_to_run_the_folders_code(checkpoint):
    code = "import sys\nfrom modeling_rsmoe.inference.loading import open_processor\nopen_processor(sys.argv[1])"
    command = [sys.executable, "-c", code, str(checkpoint)]
    fresh = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert (fresh.returncode, fresh.stdout) == (0, ""), fresh.stderr


@pytest.mark.parametrize(
    "error, told",
    [
        (
            SafetensorError("header too large\nat byte 8"),
            r"the checkpoint x cannot be loaded \(header too large\): assemble",
        ),
        (
            TypeError("Validation error for field 'r':\n    Field 'r' expected int"),
            r"\(Validation error for field 'r': Field 'r' expected int\): assemble",
        ),
        (ZeroDivisionError("division by zero"), r"the checkpoint x cannot be loaded \(division by zero\): assemble"),
        (KeyError(), r"the checkpoint x cannot be loaded \(KeyError\): assemble"),
        (
            ImportError("torchao"),
            r'needs a library that is not installed \(torchao\): pip install "rsmoe\[quantize\]"',
        ),
        (RSMoEError("our own, with\nits lines"), "^our own, with\nits lines$"),
    ],
)
def test_errors_are_one_line(error, told):
    with pytest.raises(RSMoEError, match=told) as raised, loading_errors("the checkpoint", "x"):
        raise error
    assert raised.value is error or raised.value.__cause__ is error


def test_an_interruption_is_not_hidden():
    with pytest.raises(KeyboardInterrupt), loading_errors("the checkpoint", "x"):
        raise KeyboardInterrupt

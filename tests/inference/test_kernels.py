"""Fast linear layers: the numbers are torch's, of the weights as they are now, and everything else is `nn.Linear`."""

import copy
import json
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from modeling_rsmoe.hub.assemble import round_to_half
from modeling_rsmoe.inference import kernels, load, pages
from modeling_rsmoe.inference.kernels import (
    FastLinear,
    MachineKernels,
    kernels_of,
    machine_kernels,
)
from modeling_rsmoe.inference.layers import use_fast_kernels

from ..tiny import tiny_model, tiny_processor


HAS_HALF_PRODUCTS = "fbgemm" in torch.backends.quantized.supported_engines


NUMBERS = len(kernels.COUNTS)
TORCH = MachineKernels(("torch",) * NUMBERS, ("torch",) * NUMBERS)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that makes the measured seconds of each kernel; the cache is empty."""
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RSMOE_KERNELS", raising=False)

    def measure(**seconds):
        machine_kernels.cache_clear()
        asked = []

        def timed(layers, count, names):
            asked.append(count)
            return {name: 1.0 + seconds.get(name, 0) for name in names}

        monkeypatch.setattr(kernels, "_seconds", timed)
        return asked

    yield measure
    machine_kernels.cache_clear()


class Head(nn.Module):
    """A model of one layer, as `use_fast_kernels` sees models."""

    def __init__(self, *shape):
        super().__init__()
        self.linear = nn.Linear(*shape, bias=False)

    def get_decoder(self):
        return self

    def forward(self, input_ids=None, inputs_embeds=None):
        return self.linear(inputs_embeds)


def prompt_of(head):
    """A call with several tokens, as a model reads a prompt."""
    with torch.no_grad():
        head(inputs_embeds=torch.randn(1, 3, head.linear.in_features))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("shape", [(24, 40), (24, 41), (40, 24)], ids=str)
def test_product_of_few_vectors(count, shape):
    head = Head(*shape)
    assert use_fast_kernels(head, "columns") == 1 and type(head.linear) is FastLinear
    prompt_of(head)
    assert head.linear.packed is None  # numbers that half precision has not
    x = torch.randn(count, 1, shape[0])
    with torch.no_grad():
        product = head.linear(x)
    assert product.shape == (count, 1, shape[1]) and product.is_contiguous()
    assert torch.allclose(product, F.linear(x, head.linear.weight), atol=1e-6)


@pytest.mark.skipif(not HAS_HALF_PRODUCTS, reason="torch was built without FBGEMM")
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_product_of_half_weights(count):
    head = Head(24, 40)
    round_to_half(head)
    use_fast_kernels(head, "half")
    prompt_of(head)
    assert head.linear.packed is not None
    x = torch.randn(count, 2, 24)
    with torch.no_grad():
        product = head.linear(x)
    assert product.shape == (count, 2, 40) and product.dtype == torch.float32
    assert torch.allclose(product, F.linear(x, head.linear.weight), atol=1e-6)


@pytest.mark.skipif(not HAS_HALF_PRODUCTS, reason="torch was built without FBGEMM")
def test_packed_weights_are_those_of_now():
    """Weights that were trained on, put in another's place or have other numbers are seen with the next prompt."""
    head, x = Head(24, 40), torch.randn(3, 24)
    use_fast_kernels(head, "half")
    layer = head.linear
    for change, is_packed in (
        (lambda: round_to_half(layer), True),
        (lambda: layer.weight.data.mul_(2), True),  # no new version: `data` does not count them
        (lambda: setattr(layer, "weight", nn.Parameter(torch.rand(40, 24).half().float())), True),
        (lambda: nn.init.ones_(layer.weight).mul_(1 + 2**-20), False),
    ):
        with torch.no_grad():
            change()
            prompt_of(head)
            assert (layer.packed is not None) == is_packed
            assert torch.allclose(layer(x), F.linear(x, layer.weight), atol=1e-5)


@pytest.mark.skipif(not HAS_HALF_PRODUCTS, reason="torch was built without FBGEMM")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are of a file")
def test_a_weight_of_a_file_leaves_memory(tmp_path):
    """Once it is packed, and is not read again to see whether it changed; a change of any one number is seen."""
    head, x = Head(512, 512), torch.randn(3, 512)
    round_to_half(head)
    save_file({"weight": head.linear.weight.detach()}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        weight = file.get_tensor("weight")
    head.linear.weight = nn.Parameter(weight, requires_grad=False)
    use_fast_kernels(head, "half")
    for _ in range(2):
        prompt_of(head)
        assert not pages._page_flags(weight).any()
    packed = head.linear.packed
    head.linear.weight.data[3, 5] = 7  # not one of the numbers that are compared without pages
    prompt_of(head)
    assert head.linear.packed is not packed
    with torch.no_grad():
        assert torch.allclose(head.linear(x), F.linear(x, head.linear.weight), atol=1e-4)


@pytest.mark.skipif(not HAS_HALF_PRODUCTS, reason="torch was built without FBGEMM")
def test_a_weight_is_packed_once():
    """Whatever layers it is in; a copy or a pickle of a layer begins without."""
    first, second = Head(24, 40), Head(24, 40)
    round_to_half(first)
    second.linear.weight = first.linear.weight
    for head in (first, second):
        use_fast_kernels(head, "half")
        prompt_of(head)
    assert first.linear.packed is second.linear.packed is not None
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert type(other.linear) is FastLinear and other.linear.packed is None
        prompt_of(other)
        assert other.linear.packed is not None


def test_layers_that_are_left_alone(machine, monkeypatch):
    """Of half precision, with a bias, where torch's are asked for or are the fastest; again changes none."""
    asked = machine(torch=1)
    half, with_bias, other = Head(4, 4).bfloat16(), Head(4, 4), Head(4, 4)
    with_bias.linear = nn.Linear(4, 4)
    assert use_fast_kernels(half) == use_fast_kernels(with_bias) == use_fast_kernels(other, "torch") == 0
    assert asked == []  # nothing is measured where there is nothing to replace
    monkeypatch.setenv("RSMOE_KERNELS", "torch")
    assert use_fast_kernels(other) == 0
    monkeypatch.setenv("RSMOE_KERNELS", "fast")
    with pytest.raises(ValueError, match="kernels 'fast' are not known; give one of auto, torch, half, columns"):
        use_fast_kernels(other)
    monkeypatch.delenv("RSMOE_KERNELS")
    assert (use_fast_kernels(other), use_fast_kernels(other)) == (1, 0)


def test_the_fastest_is_taken(machine):
    """For each number of vectors, of the kernels that can compute it; what is hardly faster is left, but for `half`,
    which may be a little slower."""
    few = kernels.COUNTS.index(kernels.MOST_COLUMNS) + 1
    machine(torch=1, half=0.5)
    chosen = kernels_of()
    assert chosen.plain == ("columns",) * few + ("torch",) * (NUMBERS - few)
    assert chosen.half == ("columns",) * few + (("half" if HAS_HALF_PRODUCTS else "torch"),) * (NUMBERS - few)
    (kernels.cache_folder() / "kernels.json").unlink()
    machine(half=0.12, columns=-0.04)
    assert kernels_of() == TORCH and use_fast_kernels(Head(4, 4)) == 0
    (kernels.cache_folder() / "kernels.json").unlink()
    machine(half=0.08)
    assert kernels_of() == MachineKernels(TORCH.plain, ("half",) * NUMBERS if HAS_HALF_PRODUCTS else TORCH.half)


def test_it_is_measured_once_on_a_machine(machine):
    """The next process reads it; a file that says something else is measured over, and others in it stay."""
    assert machine(torch=1) == []
    chosen = kernels_of()
    assert machine() == [] and kernels_of() == chosen != TORCH
    file = kernels.cache_folder() / "kernels.json"
    kept = json.loads(file.read_text())
    (key,) = kept
    for damaged in ("{", "[]", json.dumps({"other": 1, key: {"plain": ["torch"], "half": []}})):
        file.write_text(damaged)
        asked = machine(torch=1)
        assert kernels_of() == chosen and asked == list(kernels.COUNTS)
        assert json.loads(file.read_text())[key] == kept[key]
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file where the folder should be")
    assert len(machine(torch=1)) == 0 and kernels_of() == chosen


def test_kernels_are_measured():
    """Of real products: every kernel that can compute so many vectors has its time."""
    layer = FastLinear.of(nn.Linear(24, 40, bias=False), TORCH)
    with torch.no_grad():
        found = kernels._seconds([layer] * 8, 3, ("torch", "columns"))
    assert found.keys() == {"torch", "columns"} and all(0 < seconds < 60 for seconds in found.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 24, 100, 300])
def test_a_number_between_goes_by_the_next(count, monkeypatch):
    names = [f"kernel of {number}" for number in kernels.COUNTS]
    layer, asked = FastLinear.of(nn.Linear(4, 4, bias=False), MachineKernels(tuple(names), ())), []
    monkeypatch.setattr(layer, "product", lambda kernel, x, number: asked.append((kernel, number)))
    with torch.no_grad():
        layer(torch.ones(count, 1, 4))
    expected = next((number for number in kernels.COUNTS if number >= count), kernels.COUNTS[-1])
    assert asked == [(f"kernel of {expected}", count)]


def test_gradients_and_training_are_torchs():
    head = Head(24, 40)
    round_to_half(head)
    plain = copy.deepcopy(head)
    use_fast_kernels(head, "half")
    prompt_of(head)
    x = torch.randn(2, 1, 24)
    for model in (head, plain):
        model(inputs_embeds=x).square().sum().backward()
    assert torch.equal(head.linear.weight.grad, plain.linear.weight.grad)


@pytest.mark.parametrize("name", ["half", "columns"])
def test_full_model_says_the_same(name):
    model, plain = tiny_model(), tiny_model()
    for each in (model, plain):
        round_to_half(each.model.language_model, each.lm_head)
    assert use_fast_kernels(model, name) == 15  # seven of two layers, and the head
    image = torch.randint(0, 255, (3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    inputs = tiny_processor()(images=[image], text=["Describe."], return_tensors="pt")
    assert torch.equal(*(each.generate(**inputs, max_new_tokens=12) for each in (model, plain)))
    if HAS_HALF_PRODUCTS and name == "half":
        joined = [each.packed for layer in model.model.language_model.layers for each in layer.joined]
        assert len(joined) == 8 and all(copy is not None for copy in (model.lm_head.packed, *joined))
        assert model.model.language_model.layers[0].mlp.up_proj.packed is None  # it is part of a joined copy


def test_a_loaded_checkpoint_has_them(machine, checkpoint):
    machine(torch=1)
    assert type(load(str(checkpoint)).model.lm_head) is FastLinear
    assert type(load(str(checkpoint), kernels="torch").model.lm_head) is nn.Linear

"""Several threads use one model at once: what a call knows of its sequences is that call's own."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from modeling_rsmoe.inference.context import check_context

from .sequences import rows
from .tiny import tiny_config, tiny_model, tiny_processor


THREADS, CALLS = 4, 30


@pytest.fixture(scope="module", params=["lora", "full"])
def model(request):
    types = {"expert_type": request.param}
    return tiny_model(config=tiny_config(expert_config=types, router_config=types))


def batches():
    """Mixed batches whose sequences have other adapters at the same places."""
    whole = rows()
    orders = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [1, 1, 3], [0, 4]]
    return [{name: value[order] for name, value in whole.items()} for order in orders]


def in_threads(call, arguments):
    """Results of `call(argument)`, by four threads that begin together."""
    barrier = threading.Barrier(THREADS)

    def work(share):
        barrier.wait()
        return [(place, call(argument)) for place, argument in share]

    numbered = list(enumerate(arguments))
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(work, [numbered[start::THREADS] for start in range(THREADS)]))
    return [result for _, result in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]


def forward(model):
    def call(batch):
        with torch.no_grad():
            return model(**batch).logits

    return call


def assert_equal_to_serial(call, arguments):
    expected = [call(argument) for argument in arguments]
    found = in_threads(call, arguments * (THREADS * CALLS // len(arguments)))
    for place, result in enumerate(found):
        assert torch.equal(result, expected[place % len(arguments)]), place
    assert len(found) == THREADS * CALLS


def test_forward(model):
    assert_equal_to_serial(forward(model), batches())


@pytest.mark.slow
def test_generate(model):
    assert_equal_to_serial(lambda batch: model.generate(**batch, max_new_tokens=4), batches())


def test_full_model(model):
    """Router, experts and fusion in every thread, each of another image and another way."""
    processor = tiny_processor()
    generator = torch.Generator().manual_seed(4)
    images = [torch.randint(0, 255, (3, 40, 50), generator=generator, dtype=torch.uint8) for _ in range(4)]
    inputs = [processor(images=image, text="Describe.", return_tensors="pt") for image in images]
    ways = [{"fusion": "concat"}, {"fusion": "rewrite"}, {"router_mode": "template"}, {"num_beams": 2}]
    pairs = list(zip(inputs, ways))
    expected = [model.generate(**batch, **way, max_new_tokens=4) for batch, way in pairs]
    found = in_threads(lambda pair: model.generate(**pair[0], **pair[1], max_new_tokens=4), pairs * (CALLS // 3))
    assert all(torch.equal(result, expected[place % 4]) for place, result in enumerate(found))


def test_while_a_copy_is_trained(model):
    """A copy shares nothing with the model: neither sees the other's calls, and the copy's gradients are its own."""
    trained, alone = copy.deepcopy(model), copy.deepcopy(model)
    batch = rows()
    labels = batch["input_ids"].clone()

    def train(copied, steps):
        optimizer = torch.optim.SGD([p for p in copied.parameters() if p.requires_grad], lr=1e-4)
        copied.train()
        for _ in range(steps):
            optimizer.zero_grad()
            copied(**batch, labels=labels).loss.backward()
            optimizer.step()
        return {name: p.detach().clone() for name, p in copied.named_parameters()}

    expected = train(alone, 10)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, trained, 10)
        assert_equal_to_serial(forward(model), batches())
        learned = training.result()
    assert all(torch.equal(learned[name], value) for name, value in expected.items())


def test_checkpointed_layers_run_again_with_their_own_adapters(model):
    """The backward pass runs layers again, in whatever thread: after another forward, and beside other threads."""
    copied = copy.deepcopy(model).train()
    first, second = batches()[:2]
    labels = first["input_ids"].clone()

    def gradients(between):
        copied.zero_grad()
        loss = copied(**first, labels=labels).loss
        between()
        loss.backward()
        return {name: p.grad.clone() for name, p in copied.named_parameters() if p.grad is not None}

    expected = gradients(lambda: None)
    for reentrant in (False, True):
        copied.gradient_checkpointing_enable({"use_reentrant": reentrant})
        copied.enable_input_require_grads()
        found = gradients(lambda: in_threads(forward(model), [second] * 8) and forward(copied)(second))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)


def replica_of(module):
    """As torch's DataParallel makes them: other modules, the same weights and hooks."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(replica, name, replica_of(child))
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter)
    return replica


def test_replicas_in_threads(model):
    parts = batches()[:2] * 8
    expected = [forward(model)(part) for part in parts]
    replicas = [replica_of(model) for _ in range(2)] * 8
    found = in_threads(lambda pair: forward(pair[0])(pair[1]), list(zip(replicas, parts)))
    assert all(torch.equal(logits, one) for logits, one in zip(found, expected))


def test_copies_and_pickles_stay_right(model, tmp_path):
    batch = rows()
    expected = forward(model)(batch)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for parameter in model.model.experts.parameters():
            parameter.mul_(2)
    try:
        assert not torch.equal(forward(model)(batch), expected)
        for other in (copied, pickled):
            assert torch.equal(forward(other)(batch), expected)
    finally:
        with torch.no_grad():
            for parameter in model.model.experts.parameters():
                parameter.div_(2)


def test_a_processor_in_threads():
    """Padding and truncation are states of a tokenizer: no call may change them under another."""
    processor, config = tiny_processor(), tiny_config()

    def read(text):
        inputs = processor(images=[Image.new("RGB", (28, 28))] * 2, text=[text, "a"], return_tensors="pt")
        counts = check_context([text, "a"], inputs, processor, config, 1, 1)
        return {name: value.tolist() for name, value in inputs.items()}, counts

    texts = [f"a {'river ' * (number % 5)}" for number in range(80)]
    assert in_threads(read, texts) == [read(text) for text in texts]

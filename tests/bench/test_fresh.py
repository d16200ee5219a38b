"""Cold starts and memory, in processes of their own."""

import sys

import pytest
import torch

from modeling_rsmoe.bench import fresh
from modeling_rsmoe.bench.workbench import Workbench, made_pictures
from modeling_rsmoe.errors_rsmoe import RSMoEError
from tests.tiny import tiny_checkpoint, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("fresh") / "tiny")


def test_a_fresh_process(folder, monkeypatch):
    """One, in which all is told that cold starts and memory need."""
    monkeypatch.setattr(fresh, "MEMORY", {"full, 1 image": "full:1"})
    seen = []

    def once(*arguments):
        seen.append(run(*arguments))
        return seen[-1]

    run = fresh.in_a_fresh_process
    monkeypatch.setattr(fresh, "in_a_fresh_process", once)
    peaks = fresh.memory(folder, 2, 1, lambda name, share: None)
    assert list(peaks) == ["Python and libraries", "full, 1 image"]
    assert 50e6 < peaks["Python and libraries"] < peaks["full, 1 image"] < 2e9
    ((said, whole),) = seen
    for clock in (0, 1):
        parts = [said[part][clock] for part in fresh.PARTS]
        assert min(parts) > 0 and sum(parts) < whole[clock]


def test_cold_starts(folder, monkeypatch):
    monkeypatch.setattr(fresh, "COLD", ("full, 1 image",))
    said = {part: [2.0, 1.0] for part in fresh.PARTS}
    monkeypatch.setattr(fresh, "in_a_fresh_process", lambda *arguments: (said, (7.0, 4.0)))
    told = []
    groups = fresh.cold(folder, 2, 1, 1, lambda name, share: told.append(name))
    assert told == [fresh.HELP, "full, 1 image"] * 2 and [one["base"] for one in groups] == ["whole process"] * 2
    answer, caption = (group["times"] for group in groups)
    assert caption["load"] == {"first": 2, "wall": [2], "cpu": [1]} and caption["whole process"]["wall"] == [7]
    assert 0 < answer["whole process"]["cpu"][0] < 3


@pytest.mark.parametrize("kind", ["block", "full", "merged"])
def test_what_a_fresh_process_does(kind):
    with torch.no_grad():
        fresh._ours(Workbench(tiny_model(), tiny_processor(), "nowhere", 2), kind, 2)()


def test_instructblip_alone(folder):
    new = fresh._instructblip(str(folder), tiny_processor(), made_pictures(1), 3)()
    rows = tiny_processor()(images=made_pictures(1), text=["Describe the image."], return_tensors="pt")["input_ids"]
    assert new.shape == (1, rows.shape[1] + 3)


def test_a_process_that_fails_is_named():
    with pytest.raises(RSMoEError, match=r"a process of the bench failed \(no such thing\): .*-c raise"):
        fresh._run([sys.executable, "-c", "raise SystemExit('no such thing')"])

"""Cold starts and memory, each in a new process."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_rsmoe.bench import fresh
from modeling_rsmoe.bench.workbench import Workbench, made_images
from modeling_rsmoe.errors_rsmoe import RSMoEError
from tests.tiny import tiny_processor


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint


def small(folder) -> Workbench:
    """Only its folder and lengths are used."""
    return Workbench(None, None, folder, tokens=2)


@pytest.mark.slow
def test_a_fresh_process(folder, monkeypatch):
    """One, which prints all that cold starts and memory need."""
    monkeypatch.setattr(fresh, "MEMORY", {"full, 1 image": "full:1"})
    seen = []

    def once(*arguments):
        seen.append(run(*arguments))
        return seen[-1]

    run = fresh.in_a_fresh_process
    monkeypatch.setattr(fresh, "in_a_fresh_process", once)
    peaks = fresh.memory(small(folder))[1]["peak_bytes"]
    assert list(peaks) == ["Python and libraries", "full, 1 image"]
    assert 50e6 < peaks["Python and libraries"] < peaks["full, 1 image"] < 2e9
    ((said, whole),) = seen
    for clock in (0, 1):
        phases = [said[phase][clock] for phase in fresh.PHASES]
        assert min(phases) > 0 and sum(phases) < whole[clock]


def test_cold_starts(folder, monkeypatch):
    monkeypatch.setattr(fresh, "COLD", ("full, 1 image",))
    said = {phase: [2.0, 1.0] for phase in fresh.PHASES}
    monkeypatch.setattr(fresh, "in_a_fresh_process", lambda *arguments: (said, np.array([7.0, 4.0])))
    reported = []
    groups, _ = fresh.cold(replace(small(folder), progress=lambda name, done, total: reported.append(name)))
    assert reported == [fresh.HELP, "full, 1 image"] * 2 and [one["base"] for one in groups] == ["whole process"] * 2
    answer, caption = (group["times"] for group in groups)
    assert caption["load"] == {"first": 2, "wall": [2], "cpu": [1]} and caption["whole process"]["wall"] == [7]
    assert answer["whole process"]["cpu"][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["base:2", "full:2", "merged:2", "instructblip:1"])
def test_what_a_fresh_process_does(folder, what, capsys):
    threads = torch.get_num_threads()
    try:
        fresh.main(str(folder), what, 2, 1)
    finally:
        torch.set_num_threads(threads)
    assert min(json.loads(capsys.readouterr().out)["first caption"]) > 0


def test_instructblip_alone(folder):
    new = fresh._instructblip(str(folder), 3)()
    ids = tiny_processor()(images=made_images(1), text=["Describe the image."], return_tensors="pt")["input_ids"]
    assert new.shape == (1, ids.shape[1] + 3)


def test_a_process_that_fails_is_named():
    with pytest.raises(RSMoEError, match=r"a process of the bench failed \(no such thing\): .*-c raise"):
        fresh._run([sys.executable, "-c", "raise SystemExit('no such thing')"])

"""One bench of the tiny model for all tests here."""

from pathlib import Path

import pytest

from modeling_rsmoe.bench.workbench import Workbench
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="package")
def bench() -> Workbench:
    return Workbench(tiny_model(), tiny_processor(), Path("nowhere"), tokens=4, router_tokens=5)

"""Forked processes find what a fresh one would, whatever this process did before they began."""

import json
import sys

from .forks import INSTALLED, ROOT, run_forked


def test_path_of_a_forked_process(monkeypatch, tmp_path):
    """Remote code that was loaded here has added transformers' cache of it to `sys.path`."""
    monkeypatch.syspath_prepend(tmp_path)
    done = run_forked(["-c", "import json, sys; print(json.dumps(sys.path))"], {"PYTHONPATH": "/own"}, tmp_path)
    assert json.loads(done.stdout) == [str(tmp_path), "/own", *INSTALLED], done.stderr
    assert ROOT not in INSTALLED and INSTALLED[0] in sys.path

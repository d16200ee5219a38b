"""Trainings in processes of their own: killed at a step, or several at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..forks import run_forked


KILL = """
import os, signal, sys
from modeling_rsmoe.training import logs

name, step = sys.argv[1].split(":")
shown = logs.ExampleBar.on_step_end

def shown_then_killed(self, args, state, control, **kwargs):
    shown(self, args, state, control, **kwargs)
    if self.name == name and state.global_step == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

logs.ExampleBar.on_step_end = shown_then_killed
sys.argv[1:] = sys.argv[2:]
from modeling_rsmoe.cli import main
main()
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}


def killed_at(place: str, command: Sequence[str | Path]) -> None:
    """Run `rsmoe COMMAND`; it kills itself (-9) at the end of a step, such as "stage1:3"."""
    result = run_forked(["-c", KILL, place, *command], ENVIRONMENT)
    assert result.returncode == -9, result.stderr


def in_processes(count: int, command: Sequence[str | Path]) -> str:
    """Run `rsmoe COMMAND` in several processes of accelerate; returns what they said."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", str(count), "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "modeling_rsmoe.cli"]
    result = run_forked([*launch, *command], ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    return result.stderr

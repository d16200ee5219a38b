"""What a training shows while it runs: a bar that counts examples, TensorBoard, and the loss curve."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from ..utils.files import whole_file


CURVE_POINTS = 40  # about: a curve is smoothed to so many


class ExampleBar(TrainerCallback):
    """A bar in examples: examples per second, time left, the last loss. Outside a terminal, a line now and then.

    Args:
        name: of the training.
        examples_per_step: over all processes.
    """

    def __init__(self, name: str, examples_per_step: int):
        self.name, self.examples_per_step = name, examples_per_step
        self._bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._bar = tqdm(
            desc=self.name,
            total=state.max_steps * self.examples_per_step,
            initial=state.global_step * self.examples_per_step,
            unit=" examples",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            ncols=shutil.get_terminal_size().columns,  # tqdm alone draws nothing where a terminal gives no width
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(self.examples_per_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def close(self) -> None:
        """Leave the terminal, also after an error."""
        if self._bar is not None:
            self._bar.close()


class LossCurve(TrainerCallback):
    """Draws the losses of the log every `save_steps` steps, and at the end."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % state.save_steps == 0:
            self.on_train_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            plot_losses(state.log_history, self.file)


def tensorboard(folder: Path) -> TrainerCallback:
    """transformers' own TensorBoard callback, writing into `folder` when the training begins."""
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


def plot_losses(log: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the loss of all examples and of each kind by step, smoothed; without an entry there is no file.

    Args:
        log: the Trainer's `log_history`.
        file: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    names = sorted({name for entry in log for name in entry if name.startswith(("loss", "eval_loss"))})
    if not names:
        return
    kinds = sorted({name.removeprefix("eval_") for name in names})
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="tight")
    for name in names:
        steps, values = zip(*[(entry["step"], entry[name]) for entry in log if name in entry])
        window = max(1, len(steps) // CURVE_POINTS)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        kind, of_val = name.removeprefix("eval_"), name.startswith("eval")
        label = ("val " if of_val else "") + (kind.removeprefix("loss_") if kind != "loss" else "all")
        # A kind has one colour, dashed on val.
        style: dict[str, Any] = {"color": f"C{kinds.index(kind)}", "linestyle": "--" if of_val else "-"}
        axes.plot(steps[window - 1 :], smooth, label=label, linewidth=2 if kind == "loss" else 1, **style)
    axes.set(xlabel="step", ylabel="loss", title=f"{file.parent.name}: running mean of the loss")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    with whole_file(file) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
    plt.close(figure)

"""What a training shows while it runs: a bar that counts rows, TensorBoard, and a picture of the losses."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


SMOOTHED = 40  # points of a curve, about


class RowBar(TrainerCallback):
    """A bar in rows: rows per second, time left, the last loss. Outside a terminal, a line now and then."""

    def __init__(self, name: str, rows_per_step: int):
        self.name, self.rows_per_step, self._bar = name, rows_per_step, None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._bar = tqdm(
                desc=self.name,
                total=state.max_steps * self.rows_per_step,
                initial=state.global_step * self.rows_per_step,
                unit=" rows",
                mininterval=0.5 if sys.stderr.isatty() else 30,
                dynamic_ncols=True,
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(self.rows_per_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LossPicture(TrainerCallback):
    """Draws the losses of the log whenever a checkpoint is saved, and at the end."""

    def __init__(self, file: Path):
        self.file = file

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            plot_losses(state.log_history, self.file)

    def on_train_end(self, args, state, control, **kwargs):
        self.on_save(args, state, control)


def tensorboard(folder: Path) -> TrainerCallback:
    """transformers' own TensorBoard callback, writing into `folder` (its files are made when the training begins)."""
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


def plot_losses(log: Sequence[dict[str, Any]], file: Path) -> None:
    """The loss of all rows and of each kind by step, smoothed, as a picture; without an entry there is none."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    names = sorted({name for entry in log for name in entry if name.startswith(("loss", "eval_loss"))})
    if not names:
        return
    kinds = sorted({name.removeprefix("eval_") for name in names})
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name in names:
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        window = max(1, len(points) // SMOOTHED)
        values = np.convolve([value for _, value in points], np.ones(window) / window, mode="valid")
        kind = name.removeprefix("eval_")
        axes.plot(
            [step for step, _ in points][window - 1 :],
            values,
            label=("val " if name.startswith("eval") else "")
            + ("all" if kind == "loss" else kind.removeprefix("loss_")),
            color=f"C{kinds.index(kind)}",  # a kind has one colour, dashed on val
            linestyle="--" if name.startswith("eval") else "-",
            linewidth=2 if kind == "loss" else 1,
        )
    axes.set(xlabel="step", ylabel="loss", title=f"{file.parent.name}: running mean of the loss")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    part = file.with_name(f".{file.name}.part")
    figure.savefig(part, dpi=110, format="png")
    plt.close(figure)
    part.replace(file)

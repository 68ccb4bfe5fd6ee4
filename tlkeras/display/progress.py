"""One progress line per stage, rewritten in place in a terminal and in a notebook."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

REFRESH = 0.2  # seconds


class Progress(keras.callbacks.Callback):
    """Shows the progress of a stage: `stage 2/3 tune  epoch 4/10 ━━━━────  loss 0.21 ...  12 s`."""

    async_safe = True  # Keras does not have to wait for the numbers of each batch

    def __init__(self, title: str):
        super().__init__()
        self.title = title
        self.line = _line_writer()
        self.start = self.shown = time.monotonic()
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if time.monotonic() - self.shown >= REFRESH:
            self.shown = time.monotonic()
            steps = self.params.get("steps") or batch + 2
            self._show((batch + 1) / steps, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._show(1, logs or {})

    def _show(self, part: float, values: dict) -> None:
        epochs = self.params["epochs"]
        filled = round(20 * (self.epoch + part) / epochs)
        bar = "━" * filled + "─" * (20 - filled)
        self.line(f"{self.title}  epoch {self.epoch + 1}/{epochs} {bar}  {self._summary(values)}")

    def computing(self, examples: int) -> None:
        """Show how many examples have passed through the frozen blocks."""
        if time.monotonic() - self.shown >= REFRESH:
            self.shown = time.monotonic()
            self.line(f"{self.title}  outputs of frozen blocks: {examples:,} examples")

    def finish(self, epochs: int, values: dict, remark: str = "") -> None:
        """Write the final line."""
        text = f"{self.title}  {epochs} epochs  {self._summary(values)}"
        self.line(f"{text}  {remark}".rstrip(), last=True)

    def _summary(self, values: dict) -> str:
        shown = "  ".join(
            f"{name} {float(value):.3f}" for name, value in values.items() if np.ndim(value) == 0
        )
        return f"{shown}  {time.monotonic() - self.start:.0f} s"


def _line_writer() -> Callable[..., None]:
    """Return a function that shows a line in place of the previous one; `last=True` keeps it."""
    if "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel"):
        from IPython.display import display

        handle: Any = None

        def in_notebook(text: str, last: bool = False) -> None:
            nonlocal handle
            content = {"text/plain": text}
            if handle is None:
                handle = display(content, raw=True, display_id=True)
            else:
                handle.update(content, raw=True)

        return in_notebook

    width = 0

    def in_terminal(text: str, last: bool = False) -> None:
        nonlocal width
        if sys.stderr.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write("\r" + text.ljust(width) + ("\n" if last else ""))
            sys.stderr.flush()
            width = len(text)
        elif last:
            sys.stderr.write(text + "\n")

    return in_terminal

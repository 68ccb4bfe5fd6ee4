"""Let the user's callbacks see a staged training as a single `fit`."""

from typing import Any

import keras

# These work on each stage separately, because they compare epochs that train in the same way.
JUDGES = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
COUNTED = ("best", "best_epoch", "cooldown_counter", "wait")  # what these callbacks keep
OURS = ("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end")
HOOKS = {name for name in dir(keras.callbacks.Callback) if name.startswith("on_")} - set(OURS)


class OneRun(keras.callbacks.Callback):
    """Wraps a user's callback for the `fit` of every stage.

    Epochs are counted across stages, and training begins and ends once, so a CSVLogger keeps all
    its lines. EarlyStopping and ReduceLROnPlateau start again with every stage.

    Args:
        callback: the user's callback.

    `before` is the number of epochs in the stages before the current one. After a crash, `saved`
    is the `state` from which the callback continues.
    """

    def __init__(self, callback: keras.callbacks.Callback):
        super().__init__()
        self.callback, self.before, self.saved = callback, 0, dict[str, Any]()
        self.async_safe = getattr(callback, "async_safe", False)
        self._begun = False
        self._logs: dict | None = None
        for name in HOOKS:  # the callback's own, so that Keras still sees which of them do nothing
            setattr(self, name, getattr(callback, name))

    def set_model(self, model: keras.Model) -> None:
        if not self._begun:  # otherwise TensorBoard would open its files again
            self.callback.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        self.callback.set_params(params | {"epochs": self.before + params["epochs"]})

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self._begun or isinstance(self.callback, JUDGES):
            self._begun = True
            self.callback.on_train_begin(logs)
            if isinstance(self.callback, keras.callbacks.EarlyStopping):
                self.callback.best = None  # Keras 3.12 does not reset it
        vars(self.callback).update(self.saved)
        self.saved = {}

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.callback.on_epoch_begin(self.before + epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.callback.on_epoch_end(self.before + epoch, logs)

    def on_train_end(self, logs: dict | None = None) -> None:
        self._logs = logs
        if isinstance(self.callback, JUDGES):
            self.callback.on_train_end(logs)
        if isinstance(self.callback, keras.callbacks.SwapEMAWeights):
            self.callback.on_test_end()  # swaps averages out: the next stage has its own

    def state(self) -> dict[str, Any]:
        """Return what EarlyStopping or ReduceLROnPlateau has counted in this stage, for JSON."""
        own = vars(self.callback) if isinstance(self.callback, JUDGES) else {}
        return {name: own[name] for name in COUNTED if name in own}

    def end(self) -> None:
        """Tell the callback that the run is over."""
        if self._begun and not isinstance(self.callback, JUDGES):
            self.callback.on_train_end(self._logs)


def flat(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Flatten what `fit` takes (one callback, nested lists, a CallbackList) into one list."""
    found: list[keras.callbacks.Callback] = []
    for callback in keras.tree.flatten(callbacks or ()):
        inside = isinstance(callback, keras.callbacks.CallbackList)
        found += callback.callbacks if inside else [callback]
    for one in found:
        if isinstance(one, type) or not hasattr(one, "set_model"):
            raise TypeError(
                f"Expected callbacks that are objects of keras.callbacks; found {one!r}."
            )
    return found


def swaps(callback: keras.callbacks.Callback) -> bool:
    """True if a callback leaves the averages of the weights in the model between two epochs."""
    return isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch


def refuse(callbacks: list[keras.callbacks.Callback], backup: bool) -> None:
    """Raise ValueError for callbacks that conflict with what `fit_stages` does itself."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "Expected callbacks that leave resuming after a crash to fit_stages; found "
                "BackupAndRestore, which does not know about stages. Pass backup_dir=... instead."
            )
        if backup and swaps(callback):
            raise ValueError(
                "Expected no SwapEMAWeights(swap_on_epoch=True) with backup_dir: it would save the "
                "averages, and training could not continue from them. Pass SwapEMAWeights(), which "
                "swaps for validation alone."
            )

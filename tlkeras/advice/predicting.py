"""Predict new images with a trained model: files, folders or arrays."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.advice.predictions import Predictions
from tlkeras.advice.trained_model import TrainedModel
from tlkeras.runs.run import Run

AHEAD = 2  # batches decoded in advance while the model works


def predict(
    run: Run | keras.Model | str | os.PathLike,
    images: Any,
    top: int = 3,
    *,
    tta: bool = False,
    batch_size: int = 64,
) -> Predictions:
    """Predict classes and probabilities for new images.

    Files are decoded in the same way as the training images, in parallel threads while the model
    works. Only a few batches are in memory at a time. The result lists files that cannot be read.

    Args:
        run: the folder of a run, a Run, or a model that takes pixels 0..255. Class names are known
            only for a folder, or for a Run that `load_run` returned.
        images: one or several paths of files and folders (searched recursively); or pixels 0..255
            of shape (height, width, 3) or (images, height, width, 3), resized if necessary.
        top: how many classes to show for each image.
        tta: test-time augmentation: average over five views of each image (the original, and
            shifted by a sixteenth towards each corner). This takes five times as long. No view is
            mirrored, because that would change letters, or left and right.
        batch_size: images per batch.

    Raises:
        ValueError: if there is no run, if pixels are not 0..255 or have another shape, or if a
            folder holds no images.
        FileNotFoundError: if a file does not exist.

    >>> model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", image_size=32), classes=2)
    >>> x, y = np.random.uniform(0, 255, (32, 32, 32, 3)), np.arange(32) % 2
    >>> run = tlk.fit_stages(model, tlk.recipes.head_only(1), (x, y), verbose=0)
    >>> folder = run.save("runs/a", classes=["cat", "dog"])
    >>> found = tlk.predict("runs/a", np.full((32, 32, 3), 128))
    >>> found.names[0] in ("cat", "dog"), len(found.ranked(0))
    (True, 2)
    """
    with Predictor(run, top, tta, batch_size) as predictor:
        start = time.perf_counter()
        parts = list(predictor.stream(images))
        return predictor.joined(parts, time.perf_counter() - start)


class Predictor(TrainedModel):
    """A model that is ready to predict, batch by batch. Args: as for `predict`."""

    def __init__(self, run: Any, top: int = 3, tta: bool = False, batch_size: int = 64):
        if top < 1 or batch_size < 1:
            raise ValueError(f"top and batch_size must be at least 1; found {top}, {batch_size}.")
        super().__init__(run)
        self.top, self.views, self.batch_size = top, VIEWS if tta else VIEWS[:1], batch_size

    def stream(self, images: Any) -> Iterator[Predictions]:
        """Yield predictions, one batch at a time."""
        if isinstance(images, str | os.PathLike):
            images = [images]
        if isinstance(images, Sequence) and all(isinstance(p, str | os.PathLike) for p in images):
            yield from self._from_files(files_of(images))
            return
        pixels = self._checked(np.asarray(images))
        for start in range(0, len(pixels), self.batch_size):
            yield self._made(self._asked(pixels[start : start + self.batch_size], len(pixels)))

    def joined(self, parts: Sequence[Predictions], seconds: float) -> Predictions:
        """Join the predictions of several batches into one."""
        empty = np.zeros((0, len(self.classes)), "float32")
        given = np.concatenate([empty, *(part.probabilities for part in parts)])
        files = tuple(name for part in parts for name in part.files)
        unreadable = {name: why for part in parts for name, why in part.unreadable.items()}
        return self._made(given, files, unreadable, seconds)

    def _from_files(self, files: list[Path]) -> Iterator[Predictions]:
        from tlkeras.tasks import pictures  # needs TensorFlow, which is not needed for arrays

        if self.size is None:
            raise ValueError(
                "Expected a model with a fixed image size, to read files; found none. Pass pixels."
            )
        size, white = self.size, self.record.get("white") or pictures.WHITE
        for names, waiting in _ahead(
            lambda path: pictures.decode(path, size, white), files, self.batch_size
        ):
            read: list[str] = []
            decoded: list[np.ndarray] = []
            unreadable: dict[str, str] = {}
            for name, image in zip(names, waiting, strict=True):
                try:
                    decoded.append(image.result())
                    read.append(str(name))
                except ValueError as error:
                    unreadable[str(name)] = str(error)
            given = np.zeros((0, len(self.classes)), "float32")
            if read:
                given = self._asked(np.stack(decoded), len(files))
            yield self._made(given, tuple(read), unreadable)

    def _made(
        self, given: np.ndarray, files: tuple[str, ...] = (),
        unreadable: dict[str, str] | None = None, seconds: float = 0.0,
    ) -> Predictions:  # fmt: skip
        limits = tuple(self.record.get("thresholds") or ())
        return Predictions(
            self.classes, given, self.kind, files, unreadable or {}, seconds, self.top, limits
        )

    def _asked(self, pixels: np.ndarray, of: int) -> np.ndarray:
        """Return the outputs for a batch, one column per class.

        The last of several batches is padded, because a new shape would be retraced.
        """
        count, missing = len(pixels), self.batch_size - len(pixels)
        if of > self.batch_size and missing:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        seen = [self.probabilities(view(pixels.astype("float32"))) for view in self.views]
        return np.mean(seen, axis=0)[:count]

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        if self.size is None:
            return pixels
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels):
            raise ValueError(
                "Expected files, or pixels of shape (height, width, 3) or (images, height, width, "
                f"3); found {pixels.dtype} of shape {pixels.shape}."
            )
        if pixels.dtype.kind == "f" and 0 < pixels.max() <= 1:
            raise ValueError(
                f"Expected pixels 0..255; found floats up to {pixels.max():.3g}. Multiply by 255."
            )
        if pixels.shape[1:3] != self.size:
            resized = keras.ops.image.resize(pixels.astype("float32"), self.size, antialias=True)
            pixels = keras.ops.convert_to_numpy(resized)
        return pixels


def _shift(down: int, right: int) -> Callable[[np.ndarray], np.ndarray]:
    def view(images: np.ndarray) -> np.ndarray:
        steps = [max(1, side // 16) for side in images.shape[1:3]]
        padded = np.pad(images, [(0, 0), *((step, step) for step in steps), (0, 0)], "edge")
        top, left = steps[0] * (1 + down), steps[1] * (1 + right)
        return padded[:, top : top + images.shape[1], left : left + images.shape[2]]

    return view


VIEWS = [_shift(0, 0), *(_shift(down, right) for down in (-1, 1) for right in (-1, 1))]


def files_of(given: Sequence[str | os.PathLike]) -> list[Path]:
    """Return all files under the given paths, in order. Raises as `predict` does."""
    from tlkeras.tasks import finding

    found: list[Path] = []
    for path in (Path(one).expanduser() for one in given):
        if path.is_dir():
            inside = finding.pictures(path, finding.Passed(path))
            if not inside:
                raise ValueError(f"Expected images in {path}; found none ({finding.KINDS}).")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"No file {str(path)!r}.")
    return found


def _ahead(
    work: Callable[[Path], np.ndarray], files: Sequence[Path], count: int
) -> Iterator[tuple[Sequence[Path], list[Future]]]:
    """Yield `count` files at a time, with futures of the images that threads are decoding."""
    waiting: deque[tuple[Sequence[Path], list[Future]]] = deque()
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), count):
            part = files[start : start + count]
            waiting.append((part, [pool.submit(work, path) for path in part]))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

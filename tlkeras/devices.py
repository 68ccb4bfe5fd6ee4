"""`accelerate`: finds the devices, and sets precision, XLA and distribution to suit them."""

import gc
import os
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tlkeras import multiworker

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = {  # what each backend can do
    "tensorflow": ("none", "mirrored", "multi_worker", "tpu"),
    "jax": ("none", "mirrored"),
}


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` chose; prints as one line.

    Attributes:
        device: "CPU", "GPU" or "TPU".
        count: how many of them this process trains on.
        precision: Keras's global dtype policy.
        jit: whether XLA compiles the steps of models that can be compiled by it, if `compile` is
            called with its default, jit_compile="auto".
        strategy: "none", "mirrored" (the same weights on every device, each batch split over
            them), "multi_worker" (the same over several machines), "tpu", or the class of the
            tf.distribute strategy that was active before.
        workers: how many processes train together.
        worker: which of them this is, from 0.
        why: a word on `jit`, or "".
    """

    device: str
    count: int
    precision: str
    jit: bool
    strategy: str = "none"
    workers: int = 1
    worker: int = 0
    why: str = ""

    def __repr__(self) -> str:
        who = f"worker {self.worker} of {self.workers}, each with " if self.workers > 1 else ""
        cores = f" ({_cores()} cores)" if self.device == "CPU" else ""
        xla = f"XLA {'on' if self.jit else 'off'}{f' ({self.why})' if self.why else ''}"
        spread = f", {self.strategy}" if self.strategy != "none" else ""
        return f"tlkeras: {who}{self.count} {self.device}{cores}, {self.precision}, {xla}{spread}"

    def _ipython_display_(self) -> None:
        """Nothing: as the last line of a cell, `accelerate()` has printed it already."""


def accelerate(
    *,
    precision: str | None = None,
    jit: bool | str | None = None,
    strategy: str | None = None,
    quiet: bool = False,
) -> Acceleration:
    """Sets Keras up for the devices there are. Call it first, before any model is built.

    All of it is a global setting of Keras or TensorFlow, so there is nothing to pass on. Calling
    it again decides precision and XLA anew, and keeps the strategy. A batch is split over all
    devices of all workers: choose a batch size that their number divides, also for the last
    batch, because Keras gives the mean over each part the same weight. The workers of one
    training run the same program: give it a seed, so that all see the same order of the data.

    Args:
        precision: "float32", "mixed_bfloat16" or "mixed_float16". None: bfloat16 on TPUs and
            on GPUs of compute capability 8 and above, float16 from 7, float32 elsewhere.
        jit: whether XLA compiles training, for every later `compile` that leaves the choice to
            Keras. None leaves it with Keras: on JAX always; on TensorFlow on one GPU, not on
            CPUs, where it makes convolutions several times slower, nor under a strategy.
            "measure" times a small network with and without, and takes the faster.
        strategy: "none", "mirrored", "multi_worker" or "tpu". None: one that is active is kept;
            else TPUs, the workers named in the environment variable TF_CONFIG, or all the GPUs
            if there are several.
        quiet: prints nothing.

    Raises:
        ValueError: an argument that is none of the choices, or a TF_CONFIG that cannot be read.
        RuntimeError: too late: models exist that the new strategy would not know, or TensorFlow
            is at work already and the workers can no longer be joined.

    Source: the guides "Mixed precision" and "Multi-GPU distributed training" of Keras.
    """
    backend = keras.backend.backend()
    _check("precision", precision, PRECISIONS)
    _check("jit", jit, (True, False, "measure"))
    _check("strategy", strategy, STRATEGIES.get(backend, ("none",)))
    # Distribution comes first: workers must meet before TensorFlow does anything else.
    distribute = {"tensorflow": _distribute_tensorflow, "jax": _distribute_jax}.get(backend)
    strategy, count, workers, worker = distribute(strategy) if distribute else ("none", 1, 1, 0)
    device, capability = _device(backend)
    keras.config.set_dtype_policy(precision or precision_for(device, capability))
    compiled, why = _set_jit(jit, backend, device, strategy)
    chosen = Acceleration(
        device, count, keras.config.dtype_policy().name, compiled, strategy, workers, worker, why
    )
    if not quiet:
        print(chosen)
    return chosen


def precision_for(device: str, capability: float | None) -> str:
    """The fastest precision that trains well on a device.

    Args:
        device: "CPU", "GPU" or "TPU".
        capability: a GPU's compute capability, e.g. 7.5; None if it has none (not NVIDIA's).
    """
    if device == "TPU" or (device == "GPU" and capability and capability >= 8):
        return "mixed_bfloat16"
    if device == "GPU" and capability and capability >= 7:
        return "mixed_float16"
    # Some CPUs are quick at bfloat16, but a course's numbers should not depend on which.
    return "float32"


def _check(name: str, value: Any, choices: tuple) -> None:
    if value is not None and value not in choices:
        raise ValueError(
            f"Expected {name} to be one of {', '.join(map(repr, choices))}, or None to leave the "
            f"choice to accelerate, on Keras's {keras.backend.backend()} backend; found {value!r}."
        )


def _distribute_tensorflow(wanted: str | None) -> tuple[str, int, int, int]:
    """Makes a tf.distribute strategy global; its name, devices here, workers, and which we are."""
    import tensorflow as tf

    names = {
        tf.distribute.MirroredStrategy: "mirrored",
        tf.distribute.MultiWorkerMirroredStrategy: "multi_worker",
        tf.distribute.TPUStrategy: "tpu",
    }
    active = type(tf.distribute.get_strategy())
    name = names.get(active, active.__name__) if tf.distribute.has_strategy() else "none"
    if wanted is None and name == "none":
        wanted = _suitable_tensorflow()
    if wanted not in (None, name):
        _check_no_models(wanted)
        make = {
            "none": lambda: None,
            "mirrored": tf.distribute.MirroredStrategy,
            "multi_worker": multiworker.strategy,
            "tpu": _tpu_strategy,
        }
        tf.distribute.experimental_set_strategy(make[wanted]())
        name = wanted
    workers, worker = 1, 0
    if name == "multi_worker":
        multiworker.mend_keras()
        workers, worker = multiworker.cluster()
    return name, tf.distribute.get_strategy().num_replicas_in_sync // workers, workers, worker


def _suitable_tensorflow() -> str:
    import tensorflow as tf

    if multiworker.cluster()[0] > 1:
        return "multi_worker"
    if tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "none"


def _tpu_strategy():
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def _distribute_jax(wanted: str | None) -> tuple[str, int, int, int]:
    """The same with keras.distribution, which knows one way of splitting batches: DataParallel."""
    active = keras.distribution.distribution()
    name = "none"
    if active is not None:
        parallel = isinstance(active, keras.distribution.DataParallel)
        name = "mirrored" if parallel else type(active).__name__
    devices = keras.distribution.list_devices()
    if wanted is None and name == "none":
        on_cpus = devices[0].startswith("cpu")
        wanted = "mirrored" if len(devices) > 1 and not on_cpus else "none"
    if wanted not in (None, name):
        _check_no_models(wanted)
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices) if wanted == "mirrored" else None
        )
        name = wanted
    return name, 1 if name == "none" else len(devices), 1, 0


def _check_no_models(wanted: str) -> None:
    """Raises RuntimeError if there are models: their weights were made under another strategy."""
    gc.collect()
    found = [x for x in gc.get_objects() if issubclass(type(x), keras.Model) and x.weights]
    if found:
        names = ", ".join(sorted({model.name for model in found})[:5])
        raise RuntimeError(
            f"Expected no models yet, for strategy {wanted!r} must make their weights; found "
            f"{len(found)}: {names}. Restart Python and call tlk.accelerate() right after the "
            "imports."
        )


def _device(backend: str) -> tuple[str, float | None]:
    """The kind of device that Keras uses here, and the least compute capability of the GPUs."""
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if tf.config.list_physical_devices("TPU"):
            return "TPU", None
        details = map(tf.config.experimental.get_device_details, gpus)
        capabilities = [detail.get("compute_capability") for detail in details]
    elif backend == "jax":
        import jax

        gpus = [device for device in jax.devices() if device.platform not in ("cpu", "tpu")]
        if jax.devices()[0].platform == "tpu":
            return "TPU", None
        capabilities = [getattr(gpu, "compute_capability", None) for gpu in gpus]
    elif backend == "torch":
        import torch

        gpus = [0] if torch.cuda.is_available() else []
        capabilities = [torch.cuda.get_device_capability(gpu) for gpu in gpus]
    else:
        return "CPU", None
    if not gpus:
        return "CPU", None
    texts = [c if isinstance(c, str) or not c else f"{c[0]}.{c[1]}" for c in capabilities]
    return "GPU", min(map(float, texts)) if all(texts) else None


def _set_jit(jit: bool | str | None, backend: str, device: str, strategy: str) -> tuple[bool, str]:
    """Makes jit_compile="auto" mean `jit` for every model; whether XLA is on then, and a word."""
    hook = "_resolve_auto_jit_compile"  # compile asks it what "auto" means
    if hook in vars(keras.Model):
        delattr(keras.Model, hook)  # set by an earlier call
    several = backend == "tensorflow" and strategy not in ("none", "tpu")
    if jit is None:
        if backend == "tensorflow" and device == "CPU":
            return False, "slower on CPUs"
        return backend in ("tensorflow", "jax") and not several, ""
    if jit and several:
        raise ValueError(
            f"Expected jit to be False or None under strategy {strategy!r}, for XLA cannot "
            f"compile a TensorFlow step over several devices; found {jit!r}."
        )
    if not hasattr(keras.Model, hook):
        raise RuntimeError(
            f'Expected a Keras in which the meaning of jit_compile="auto" can be set; found Keras '
            f"{keras.__version__}. Leave out jit=, and give jit_compile= to compile."
        )
    why = ""
    if jit == "measure":
        gain = _seconds(jit=False) / _seconds(jit=True)
        jit, why = gain > 1, f"measured: with it {gain:.1f}x the speed"
    setattr(keras.Model, hook, lambda self: jit)
    return jit, why


def _seconds(jit: bool) -> float:
    """The time of a training step of a small convolutional network, after it was compiled."""
    initializer = keras.initializers.GlorotUniform(seed=0)  # leaves the global seed alone
    model = keras.Sequential(
        [
            keras.Input((32, 32, 16), name="measure_input"),
            keras.layers.Conv2D(16, 3, kernel_initializer=initializer, name="measure_conv1"),
            keras.layers.Conv2D(16, 3, kernel_initializer=initializer, name="measure_conv2"),
        ],
        name="measure",
    )
    model.compile(keras.optimizers.SGD(1e-3, name="measure_sgd"), "mse", jit_compile=jit)
    x, y = np.ones((32, 32, 32, 16), "float32"), np.ones((32, 28, 28, 16), "float32")
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        seconds.append(time.perf_counter() - start)
    return min(seconds[2:])  # the first traces and compiles


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

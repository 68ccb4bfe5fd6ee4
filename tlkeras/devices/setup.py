"""`accelerate`, which finds the devices and sets a suitable precision and distribution."""

import os
from dataclasses import dataclass
from typing import Any

import keras

from tlkeras.devices.join import join
from tlkeras.utils import processes

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = {"tensorflow": ("none", "mirrored", "tpu"), "jax": ("none", "mirrored")}


@dataclass(frozen=True)
class Acceleration:
    """The settings that `accelerate` chose; prints as one line.

    Attributes:
        device: "CPU", "GPU" or "TPU".
        count: number of devices that this process trains on.
        precision: Keras's global dtype policy.
        jit: whether XLA compiles the steps of a model that is compiled with Keras's default,
            jit_compile="auto".
        strategy: "none", "mirrored" (the same weights on every device, each batch split over
            them), "tpu", or the class name of another strategy that was already active.
        process: index of this process, from 0.
        processes: number of processes that train together.
    """

    device: str
    count: int
    precision: str
    jit: bool
    strategy: str = "none"
    process: int = 0
    processes: int = 1

    def __repr__(self) -> str:
        cores = f" ({_cores()} cores)" if self.device == "CPU" else ""
        spread = f", {self.strategy}" if self.strategy != "none" else ""
        if self.processes > 1:
            spread += f", process {self.process} of {self.processes}"
        xla = "on" if self.jit else "off"
        return f"tlkeras: {self.count} {self.device}{cores}, {self.precision}, XLA {xla}{spread}"

    def _ipython_display_(self) -> None:
        """Show nothing: at the end of a cell, `accelerate()` has already printed the line."""


def accelerate(
    *,
    precision: str | None = None,
    strategy: str | None = None,
    job_addresses: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    start_timeout: int = 300,
    quiet: bool = False,
) -> Acceleration:
    """Set up Keras for the available devices. Call it first, before any model is built.

    All of these are global settings of Keras or TensorFlow, so there is nothing to pass to other
    calls. Calling it again chooses the precision again; the strategy is kept unless you name
    another. A model that was built before stays on the one device it was built on. Each batch is
    split over all devices. Choose a batch size that is divisible by their number, also for the last
    batch, because Keras gives the mean over each part the same weight.

    With KERAS_BACKEND=jax, several processes on one or more machines can train one model: start the
    same script in each, and call this before anything else that uses JAX. Each process is then
    given all the data, and `fit_stages` takes its part of every batch (docs/scale.md).

    Args:
        precision: "float32", "mixed_bfloat16" or "mixed_float16". None: bfloat16 on TPUs and
            on GPUs of compute capability 8 and above, float16 from 7, float32 elsewhere.
        strategy: "none", "mirrored" or "tpu". None: an active strategy is kept; otherwise TPUs,
            or all GPUs if there are several, or all devices of several processes are used.
        job_addresses: host:port of process 0, where the others find it, or of all processes,
            separated by commas. None: the environment variable KERAS_DISTRIBUTION_JOB_ADDRESSES,
            as for `keras.distribution.initialize`. If nothing is set, this process trains alone.
        num_processes: number of processes. None: KERAS_DISTRIBUTION_NUM_PROCESSES.
        process_id: index of this process, from 0. None: KERAS_DISTRIBUTION_PROCESS_ID.
        start_timeout: seconds to wait for the other processes to start, before this one ends.
        quiet: if True, print nothing.

    Raises:
        ValueError: an argument is not one of the choices; or several processes are requested on
            another backend, with incomplete or contradictory arguments, or after JAX was used.

    Source: the guides "Mixed precision" and "Multi-GPU distributed training" of Keras.

    >>> chosen = tlk.accelerate(precision="float32", strategy="none", quiet=True)
    >>> chosen.precision, chosen.strategy, chosen.processes
    ('float32', 'none', 1)
    """
    backend = keras.backend.backend()
    _check("precision", precision, PRECISIONS)
    _check("strategy", strategy, STRATEGIES.get(backend, ("none",)))
    join(job_addresses, num_processes, process_id, start_timeout, quiet)
    distribute = {"tensorflow": _distribute_tensorflow, "jax": _distribute_jax}.get(backend)
    strategy, count = distribute(strategy) if distribute else ("none", 1)
    device, capability = find_device(backend)
    keras.config.set_dtype_policy(precision or precision_for(device, capability))
    policy = keras.config.dtype_policy().name
    chosen = Acceleration(
        device, count, policy, _jit(backend, device, strategy), strategy,
        processes.index(), processes.count(),
    )  # fmt: skip
    if not quiet:
        print(chosen)
    return chosen


def precision_for(device: str, capability: float | None) -> str:
    """Return the fastest precision that trains well on a device.

    Args:
        device: "CPU", "GPU" or "TPU".
        capability: compute capability of a GPU, e.g. 7.5; None if it has none (not NVIDIA).
    """
    if device == "TPU" or (device == "GPU" and capability and capability >= 8):
        return "mixed_bfloat16"
    if device == "GPU" and capability and capability >= 7:
        return "mixed_float16"
    # Some CPUs are fast at bfloat16, but the results of the course should not depend on the CPU.
    return "float32"


def _check(name: str, value: Any, choices: tuple) -> None:
    if value is not None and value not in choices:
        raise ValueError(
            f"Expected {name} to be one of {', '.join(map(repr, choices))}, or None to leave the "
            f"choice to accelerate, on Keras's {keras.backend.backend()} backend; found {value!r}."
        )


def _distribute_tensorflow(wanted: str | None) -> tuple[str, int]:
    """Set a global tf.distribute strategy; return its name and the number of devices."""
    import tensorflow as tf

    names = {tf.distribute.MirroredStrategy: "mirrored", tf.distribute.TPUStrategy: "tpu"}
    active = type(tf.distribute.get_strategy())
    name = names.get(active, active.__name__) if tf.distribute.has_strategy() else "none"
    if wanted is None and name == "none":
        several = len(tf.config.list_physical_devices("GPU")) > 1
        on_tpu = tf.config.list_physical_devices("TPU")
        wanted = "tpu" if on_tpu else "mirrored" if several else "none"
    if wanted not in (None, name):
        make = {
            "none": lambda: None,
            "mirrored": tf.distribute.MirroredStrategy,
            "tpu": _tpu_strategy,
        }
        tf.distribute.experimental_set_strategy(make[wanted]())
        name = wanted
    return name, tf.distribute.get_strategy().num_replicas_in_sync


def _tpu_strategy() -> Any:
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def _distribute_jax(wanted: str | None) -> tuple[str, int]:
    """Do the same with keras.distribution, whose DataParallel splits batches over the devices."""
    active = keras.distribution.distribution()
    name = "none"
    if active is not None:
        parallel = isinstance(active, keras.distribution.DataParallel)
        name = "mirrored" if parallel else type(active).__name__
    devices, several = keras.distribution.list_devices(), processes.count() > 1
    if wanted is None and name == "none":
        on_cpus = devices[0].startswith("cpu")
        wanted = "mirrored" if several or (len(devices) > 1 and not on_cpus) else "none"
    if wanted not in (None, name):
        parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        keras.distribution.set_distribution(parallel if wanted == "mirrored" else None)
        name = wanted
    return name, 1 if name == "none" else len(devices) // processes.count()


def find_device(backend: str) -> tuple[str, float | None]:
    """Return the type of device that Keras uses, and the lowest compute capability of the GPUs."""
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


def _jit(backend: str, device: str, strategy: str) -> bool:
    """True if jit_compile="auto" means XLA: always on JAX; on TensorFlow on one GPU or on TPUs."""
    if backend == "tensorflow":
        return device != "CPU" and strategy in ("none", "tpu")
    return backend == "jax"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

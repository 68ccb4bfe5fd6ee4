"""Several machines train one model: TF_CONFIG, and what Keras 3 needs to `fit` there.

Keras issue #20585: under `tf.distribute.MultiWorkerMirroredStrategy`, `fit` and `evaluate` of
Keras 3 (3.15 and before) fail in two places. Before the first step they build metrics and
optimizer from a batch, and take the part of it that is on this worker, a PerReplica, for a tensor.
After every step they average metrics over the replicas along axis 0, which a scalar has not.
`mend_keras` gives the first the shapes and types of the data instead of a batch, and the second
no axis, for multi-worker strategies only. It can go when tests/test_accelerate.py passes without
it on the lowest Keras supported.
"""

import functools
from typing import Any

import keras

from tlkeras.workers import EXAMPLE, cluster

REMEDY = (
    "Start every worker again; with the same backup_dir as before, fit_stages goes on from the "
    "last epoch that was stored."
)


def strategy():
    """The MultiWorkerMirroredStrategy of TF_CONFIG; waits until every worker has called it.

    TensorFlow listens for the other workers on every network interface of this machine and does
    not encrypt or authenticate: use a private network.

    Raises:
        ValueError: TF_CONFIG does not name several workers.
        RuntimeError: TensorFlow has been used before in this process.
    """
    import tensorflow as tf

    if cluster()[0] < 2:
        raise ValueError(
            "Expected the environment variable TF_CONFIG to name several workers; found one or "
            f"none. Set it on every machine, e.g. to {EXAMPLE}."
        )
    try:
        made = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise RuntimeError(
            "Expected to be called before anything uses TensorFlow, for workers must find each "
            "other first; found TensorFlow at work already. Restart Python and call "
            "tlk.accelerate() right after the imports."
        ) from error
    distribute = made.experimental_distribute_dataset
    made.experimental_distribute_dataset = lambda dataset, options=None: distribute(
        _split_by_batch(dataset), options
    )
    mend_keras()
    return made


def _split_by_batch(dataset: Any) -> Any:
    """`dataset`, set so that every worker gets its part of every batch.

    TensorFlow's default deals out whole files where it finds any: then workers train on other
    batches than one machine would, or one of them on nothing if there are fewer files.
    """
    import tensorflow as tf

    policies = tf.data.experimental.AutoShardPolicy
    if dataset.options().experimental_distribute.auto_shard_policy != policies.AUTO:
        return dataset  # its maker decided
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policies.DATA
    return dataset.with_options(options)


def mend_keras() -> None:
    """Makes `fit`, `evaluate` and `predict` work under multi-worker strategies; see above.

    Raises:
        RuntimeError: this Keras has other inner parts than those replaced here.
    """
    from keras.src.backend.tensorflow import trainer

    if getattr(trainer, "_tlkeras_mended", False):
        return
    methods = trainer.TensorFlowTrainer
    try:
        build, reduce = methods._maybe_symbolic_build, trainer.reduce_per_replica
    except AttributeError as error:
        raise RuntimeError(
            f"Expected a Keras whose trainer tlkeras can mend for several workers (issue #20585); "
            f"found Keras {keras.__version__}, in which {error}. Upgrade tlkeras."
        ) from error

    @functools.wraps(build)
    def build_from_specs(self, iterator=None, data_batch=None):
        if iterator is not None and _is_multi_worker(self.distribute_strategy):
            spec = iterator.data_adapter.get_tf_dataset().element_spec
            iterator, data_batch = None, keras.tree.map_structure(_of_one_replica, spec)
        return build(self, iterator=iterator, data_batch=data_batch)

    @functools.wraps(reduce)
    def reduce_scalars_too(values, strategy, reduction):
        if reduction in ("auto", "mean") and _is_multi_worker(strategy):
            return keras.tree.map_structure(
                lambda value: strategy.reduce("MEAN", value, axis=None), values
            )
        return reduce(values, strategy, reduction)

    methods._maybe_symbolic_build = build_from_specs
    trainer.reduce_per_replica = reduce_scalars_too
    for name in ("fit", "evaluate", "predict"):
        setattr(methods, name, _explained(getattr(methods, name)))
    trainer._tlkeras_mended = True


def _is_multi_worker(strategy: Any) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _of_one_replica(spec: Any) -> Any:
    """Shape and type of what a replica gets, also of a dataset that is distributed already."""
    return getattr(spec, "_value_specs", [spec])[0]


def _explained(method):
    """`method`, with an error that says what to do if another worker is gone."""

    @functools.wraps(method)
    def explained(self, *args, **kwargs):
        import tensorflow as tf

        lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
        try:
            return method(self, *args, **kwargs)
        except lost as error:
            if not _is_multi_worker(self.distribute_strategy):
                raise
            raise RuntimeError(f"Another worker stopped or cannot be reached. {REMEDY}") from error

    return explained

"""Mistakes with data are named before training, and what `fit` takes is taken."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.inputs import intake, order
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2)
X, Y = easy_data(48)


class Batches(keras.utils.PyDataset):
    """Batches of 16 of the data; `count` None: without end."""

    def __init__(self, count=3, **how):
        super().__init__(**how)
        self.count, self.asked = count, []

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, number):
        self.asked.append(number)
        rows = slice(16 * (number % 3), 16 * (number % 3) + 16)
        return X[rows], Y[rows]


def refused(data, message, **how):
    with pytest.raises(ValueError, match=message):
        fit_stages(with_head(small_backbone()), [HEAD], data, verbose=0, **how)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[8:], Y), "found 40 in x, 48 in y"),
        ((X, Y[:40]), "found 48 in x, 40 in y"),
        ((X, Y, np.ones(5)), "5 in sample_weight"),
        ((X, np.where(Y, "cat", "dog")), r"found names \('dog'\).*np\.unique"),
        ((X, ["cat"] * 48), "found names"),
        ((X, np.array(["cat"] * 48, object)), "found names"),
        ((X.astype(object), Y), r"found an array of object.*astype\('float32'\)"),
        ((X[..., 0], Y), r"\(16, 16, 3\).*found \(16, 16\).*x\[\.\.\., None\], 3, -1"),
        ((X[..., :1], Y), r"np\.repeat\(x, 3, -1\)"),
        ((X[:, :8], Y), r"found \(8, 16, 3\)"),
        ((list(X), Y), r"several inputs; found 48.*np\.stack"),
        ((X,), "without labels"),
        (X, "without labels"),
        (Batches(None), r"come to an end.*steps_per_epoch"),
        ((batch for batch in [(X, Y)]), "generator, which the first epoch uses up"),
        (lambda: (X, Y), r"a tf.data.Dataset or a PyDataset; found function"),
        (({"a": X, "b": None}, Y), "found a NoneType. Give the optional input"),
        ((X, [Y, None]), r"found a NoneType. Give labels as \{name of the output"),
    ],
    ids=range(18),
)
def test_it_is_named_before_training(data, message):
    refused(data, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d((X, Y)), r"single examples.*batch\(32\)"),
        (lambda d: d((X, keras.utils.to_categorical(Y))), "single examples"),
        (lambda d: d({"image": X, "label": Y}).batch(8), r"\(d\['image'\], d\['label'\]\)"),
        (lambda d: d(X).batch(8), "without labels"),
        (lambda d: d((X, np.where(Y, "cat", "dog"))).batch(8), "found names"),
        (lambda d: d((X[..., 0], Y)).batch(8), "x\\[..., None\\]"),
        (lambda d: d((X, Y)).batch(8).repeat(), "come to an end"),
    ],
    ids=range(7),
)
def test_of_a_dataset_it_is_named_and_nothing_is_opened(make, message):
    tf = pytest.importorskip("tensorflow")
    refused(make(tf.data.Dataset.from_tensor_slices), message)


def test_validation_data_are_looked_at_too():
    refused((X, Y), "label for every example", validation_data=(X[8:], Y))
    refused((X, Y), "Of the validation data: Expected class labels", validation_data=(X, Y + 1))
    model = with_head(small_backbone(trained=False))
    with pytest.raises(ValueError, match=r"vary 0\.00392 times as much"):
        fit_stages(model, [HEAD], (X, Y), (X / 255, Y), verbose=0)
    refused((X, Y), "validation_steps", validation_data=Batches(None))


def test_lists_and_tables_are_taken():
    rows = [[1.0, 2.0], [3.0, 4.0]]
    x, y = intake.as_arrays((rows, [0, 1], None))
    assert x.shape == (2, 2) and y.tolist() == [0, 1]
    pandas = pytest.importorskip("pandas")
    x, y = intake.as_arrays((pandas.DataFrame(rows), pandas.Series([0, 1])))
    assert x.shape == (2, 2) and type(y) is np.ndarray
    both = intake.as_arrays(({"a": rows, "b": X}, Y))
    assert both[0]["a"].shape == (2, 2) and both[0]["b"] is X
    run = fit_stages(with_head(small_backbone()), [HEAD], (X, Y.tolist()), verbose=0)
    assert len(run.history["loss"]) == 2


@pytest.mark.parametrize("size", [0, -1, 8.0, "8"])
def test_a_batch_size_is_a_whole_number(size):
    refused((X, Y), "batch_size of 1 or more", batch_size=size)


@pytest.mark.parametrize("kind", ["arrays", "PyDataset", "endless", "tf.data"])
def test_steps_per_epoch_is_how_many_batches_an_epoch_takes(kind):
    data = {"arrays": (X, Y), "PyDataset": Batches(), "endless": Batches(None)}.get(kind)
    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat()
    steps = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)

    run = fit_stages(
        with_head(small_backbone()), [HEAD], data, Batches(None), steps_per_epoch=2,
        validation_steps=2, callbacks=[Count()], batch_size=16, verbose=0,
    )  # fmt: skip
    assert steps == [0, 1, 0, 1] and len(run.history["val_loss"]) == 2
    assert "steps_per_epoch" in run.stages[0].cache


def test_steps_go_on_through_the_data_where_the_last_epoch_ended():
    data = order.ordered((X, np.arange(48)), 16, (0,), None, steps=2)
    seen = []
    for epoch in range(3):
        data.begin(epoch)
        seen += [data[i][1] for i in range(len(data))]
    for lap in (seen[:3], seen[3:]):
        assert sorted(np.concatenate(lap)) == list(range(48))
    assert not np.array_equal(seen[0], seen[3])
    data = order.ordered(Batches(None), 16, (0,), None, steps=2)
    data.begin(4)
    data[1]
    assert data.data.asked == [9]


def test_steps_go_with_a_backup_only_where_batches_have_numbers(tmp_path):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat()
    refused(data, "asked for by number", steps_per_epoch=2, backup_dir=tmp_path)
    refused((X, Y), "steps_per_epoch of 1 or more; found 0", steps_per_epoch=0)


def test_validation_split_takes_the_last_examples():
    training, validation = intake.divided((X, Y, None), None, 0.25)
    assert [len(part) for part in training] == [36, 36]
    assert np.array_equal(validation[1], Y[36:])
    run = fit_stages(with_head(small_backbone()), [HEAD], (X, Y), validation_split=0.25, verbose=0)
    assert "val_loss" in run.history and "after" in run.stages[0].cache
    refused((X, Y), "found validation data", validation_data=(X, Y), validation_split=0.5)
    refused(Batches(), "Expected arrays", validation_split=0.5)
    refused((X, Y), "on both sides", validation_split=1.0)


@pytest.mark.filterwarnings("ignore:Batches is read by one worker")
def test_the_workers_of_a_pydataset_work_and_change_nothing():
    results, on_tensorflow = [], keras.backend.backend() == "tensorflow"
    for how in ({}, {"workers": 3, "max_queue_size": 5}):
        keras.utils.set_random_seed(1)
        model, data = with_head(small_backbone()), Batches(**how)
        fit_stages(model, [HEAD], data, cache=False, seed=0, verbose=0)
        results.append(model.get_weights())
    found = order.ordered(data, 16, (0,), None, steps=2)
    assert (found.workers, found.max_queue_size) == (3 if on_tensorflow else 1, 5)
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_a_task_with_its_own_preprocessor_is_given_raw_data():
    hub = pytest.importorskip("keras_hub").models
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    backbone = hub.BertBackbone(
        vocabulary_size=8, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=8,
    )  # fmt: skip
    prepare = hub.BertTextClassifierPreprocessor(
        hub.BertTokenizer(vocabulary=words), sequence_length=8
    )
    model = hub.BertTextClassifier(backbone, num_classes=2, preprocessor=prepare)
    data = (np.array(["good film", "bad film"] * 8), np.array([1, 0] * 8))
    stage = Stage("all", policies.all_blocks(), learning_rate=1e-2, epochs=10)
    run = fit_stages(model, [stage], data, data, seed=0, verbose=0)
    assert run.history["val_loss"][-1] < run.history["val_loss"][0]
    assert "off" in run.stages[0].cache
    expected = model.evaluate(*data, verbose=0)[0]
    assert min(run.history["val_loss"]) == pytest.approx(expected, rel=1e-3)


def test_weights_of_classes_go_with_one_array_of_labels_and_no_others():
    refused((X, Y, np.ones(48)), "not both", class_weight={0: 2.0})
    refused((X, {"a": Y}), "several outputs", class_weight={0: 2.0}, loss={"a": "mse"})
    refused((X, Y), "must be a dict.*found 'balanced'", class_weight="balanced")
    refused((X, Y), "found {'0': 2.0}", class_weight={"0": 2.0})


def test_ragged_and_sparse_arrays_are_to_come_in_a_dataset():
    tf = pytest.importorskip("tensorflow")
    for array in (tf.ragged.stack(list(X)), tf.sparse.from_dense(X)):
        refused((array, Y), r"found a (Ragged|Sparse)Tensor.*from_tensor_slices")

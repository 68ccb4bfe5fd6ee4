"""What `fit_stages` takes, `find_learning_rate`, `probe` and `evaluate` take, too."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk

X, Y = easy_data(48)
PLAN = [tlk.Stage("head", tlk.policies.head_only(), learning_rate=1e-2, epochs=1)]


class Table:
    """As pandas and polars have it."""

    def __init__(self, array):
        self.array = array

    def to_numpy(self):
        return self.array


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, number):
        return X[16 * number : 16 * number + 16], Y[16 * number : 16 * number + 16]


def from_tf():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


def task():
    """A KerasHub task with its preprocessor, and texts."""
    hub = pytest.importorskip("keras_hub").models
    backbone = hub.BertBackbone(
        vocabulary_size=8, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=8, dropout=0.0,
    )  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    prepare = hub.BertTextClassifierPreprocessor(
        hub.BertTokenizer(vocabulary=words), sequence_length=8
    )
    model = hub.BertTextClassifier(backbone, num_classes=2, preprocessor=prepare)
    return model, (["good film", "bad film"] * 8, [1, 0] * 8)


def named_input():
    image, plain = keras.Input((16, 16, 3), name="image"), with_head(small_backbone())
    return keras.Model({"image": image}, plain(image)), ({"image": X}, Y)


def listed_input():
    image, plain = keras.Input((16, 16, 3)), with_head(small_backbone())
    return keras.Model([image], plain(image)), ([X], Y)


KINDS = {
    "arrays": (X, Y),
    "list": [X, Y.tolist()],
    "no weights": (X, Y, None),
    "weights": (X, Y, np.ones(48)),
    "table": (X, Table(Y)),
    "PyDataset": Batches(),
    "tf.data": from_tf,
    "dict": named_input,
    "lists": listed_input,
    "task": task,
}


OF_ITS_OWN = ("dict", "lists", "task")  # a model beside the data


@pytest.mark.parametrize("kind", KINDS)
def test_all_take_it(kind):
    keras.utils.set_random_seed(0)
    given = KINDS[kind]() if callable(KINDS[kind]) else KINDS[kind]
    model, data = given if kind in OF_ITS_OWN else (with_head(small_backbone()), given)
    cache = tlk.FeatureCache()
    run = tlk.fit_stages(model, PLAN, data, data, cache=cache, seed=0, verbose=0)
    scores = tlk.evaluate(model, data, cache)
    assert scores["loss"] == pytest.approx(run.history["val_loss"][-1], rel=1e-4)
    assert len(tlk.find_learning_rate(model, data, steps=10).rates)
    assert len(tlk.probe(model, data, data).accuracies)


@pytest.mark.parametrize("cache", ["auto", False])
def test_lists_of_inputs_and_of_labels_are_as_tuples(cache):
    def two_ended():
        keras.utils.set_random_seed(0)
        image, more = keras.Input((16, 16, 3)), keras.Input((4,))
        seen = keras.layers.GlobalAveragePooling2D()(small_backbone()(image))
        both = keras.layers.Concatenate()([seen, more])
        outputs = [keras.layers.Dense(count, name=f"to_{count}")(both) for count in (3, 1)]
        model = keras.Model([image, more], outputs)
        model.compile("sgd", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"])
        return model

    x, y = [X, np.ones((48, 4), "float32")], [Y, Y.astype("float32")]
    lists, tuples = (
        tlk.fit_stages(two_ended(), PLAN, data, data, cache=cache, seed=0, verbose=0)
        for data in ((x, y), (tuple(x), tuple(y)))
    )
    assert lists.history == tuples.history


@pytest.mark.parametrize("use", ["evaluate", "find_learning_rate", "probe"])
def test_all_name_mistakes(use):
    model = with_head(small_backbone())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rest = {"evaluate": [tlk.FeatureCache()], "probe": [(X, Y)]}.get(use, [])
    for data, message in (
        ((X[8:], Y), "found 40 in x, 48 in y"),
        ((X[:, :8], Y), r"found \(8, 16, 3\)"),
        ((X,), "without labels"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(tlk, use)(model, data, *rest)
    if use != "find_learning_rate":
        tf = pytest.importorskip("tensorflow")
        endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat()
        with pytest.raises(ValueError, match=r"come to an end.*data\.take"):
            getattr(tlk, use)(model, endless, *rest)

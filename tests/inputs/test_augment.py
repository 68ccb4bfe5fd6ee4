"""Augmentation takes masks and labels along where it moves or mixes what they go with."""

import keras
import numpy as np
import pytest
from keras import layers
from small import easy_data, small_backbone, with_head

from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze
from tlkeras.inputs import augment, order
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

X, Y = easy_data(32)
ONE_HOT = keras.utils.to_categorical(Y, 3)
MASKS = (X[..., 0] > 0).astype("int32")
PICTURES = np.where(MASKS[..., None], 255.0, 0.0).repeat(3, -1).astype("float32")


def fresh():
    keras.utils.set_random_seed(0)
    return with_head(small_backbone())


def flip(seed=1):
    return layers.RandomFlip("horizontal", seed=seed)


def segmenter():
    image = keras.Input((16, 16, 3))
    return keras.Model(image, layers.Conv2D(2, 1)(layers.UpSampling2D(8)(small_backbone()(image))))


def batch_of(data, augmentation, size=32):
    return order.ordered(data, size, (0,), augmentation)[0]


@pytest.mark.parametrize("masks", [MASKS, MASKS[..., None]], ids=["(n, h, w)", "(n, h, w, 1)"])
@pytest.mark.parametrize(
    "moving",
    [
        flip,
        lambda: layers.RandomRotation(0.1, seed=2),
        lambda: layers.Pipeline([layers.RandomContrast(0.5, seed=3), flip()]),
        lambda: keras.Sequential(
            [layers.RandomBrightness(0.1, (0, 255)), keras.Sequential([flip()])]
        ),
        lambda: layers.RandomElasticTransform(factor=1.0, scale=0.5, seed=1),
    ],
    ids=["flip", "rotation", "pipeline", "nested", "elastic"],
)
def test_masks_move_with_their_pictures(masks, moving):
    x, y = batch_of((PICTURES, masks), moving())
    assert y.shape == masks.shape and set(np.unique(y)) <= {0, 1}
    assert not np.array_equal(x, PICTURES[order.ordered((X, Y), 32, (0,), None).order])
    agree = (x[..., 0] > 127) == (y.reshape(MASKS.shape) > 0)
    assert agree.mean() > 0.93  # a picture is moved bilinearly, a mask to the nearest pixel


MADE = {
    "mixed": lambda: [layers.MixUp(seed=0)],
    "cut": lambda: [layers.RandomContrast(0.5, seed=5), layers.CutMix(seed=0)],
    "masks": lambda: [flip(), layers.RandomTranslation(0.2, 0.2, seed=4)],
}


@pytest.mark.parametrize("kind", MADE)
def test_it_is_what_a_map_by_hand_gives(kind):
    tf = pytest.importorskip("tensorflow")
    by_hand, key = MADE[kind](), "segmentation_masks" if kind == "masks" else "labels"

    def change(x, y):
        data = {"images": x, key: tf.cast(y, "float32")}
        for layer in by_hand:
            data = layer(data, training=True)
        whole = kind == "masks"  # Keras 3.12 moves them bilinearly
        return data["images"], tf.floor(data[key] + 0.5) if whole else data[key]

    labels = MASKS[..., None] if kind == "masks" else ONE_HOT
    data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(16)
    expected = list(data.map(change))
    found = list(order.ordered(data, 16, (0,), layers.Pipeline(MADE[kind]())))
    assert len(found) == 2
    for hand, ours in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(hand, ours)


def test_mixing_mixes_rows_of_labels_as_it_mixes_pictures():
    x = np.broadcast_to(Y[:, None, None, None], X.shape).astype("float32")
    mixed, rows = batch_of((x, ONE_HOT.astype("int32")), layers.MixUp(alpha=0.9, seed=0))
    np.testing.assert_allclose(rows @ [0, 1, 2], mixed[:, 0, 0, 0], atol=1e-5)
    assert (rows.max(1) < 0.99).any()


def test_a_function_is_given_what_it_asks_for():
    alone = batch_of((X, Y), lambda x: -x)
    told = batch_of((X, Y), lambda x, training: -x if training else x)
    both = batch_of((X, Y, np.ones(32)), lambda images, labels: (-images, labels + 1))
    np.testing.assert_array_equal(alone[0], told[0])
    np.testing.assert_array_equal(alone[1] + 1, both[1])
    assert len(both) == 3


@pytest.mark.parametrize("mixing", [layers.MixUp, layers.CutMix])
def test_a_stage_trains_on_mixed_labels_as_by_hand(mixing):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, ONE_HOT.astype("float32"))).batch(16)
    stage = Stage("mixed", policies.head_only(), 3e-2, epochs=2, augment=mixing(seed=0), views=2)
    ours, hand, layer = fresh(), fresh(), mixing(seed=0)
    run = fit_stages(ours, [stage], data, seed=0, verbose=0)
    assert "labels with the inputs" in run.stages[0].cache
    freeze(hand, policies.head_only())
    hand.compile(
        keras.optimizers.AdamW(3e-2), keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    mixed = data.map(lambda x, y: layer({"images": x, "labels": y}, training=True))
    hand.fit(mixed.map(lambda d: (d["images"], d["labels"])), epochs=2, shuffle=False, verbose=0)
    for one, other in zip(ours.get_weights(), hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_weights_of_classes_go_with_mixed_labels():
    stage = Stage("mixed", policies.head_only(), epochs=1, augment=layers.MixUp(seed=0))
    run = fit_stages(fresh(), [stage], (X, ONE_HOT), class_weight={0: 2.0}, verbose=0)
    assert np.isfinite(run.history["loss"]).all()


def test_a_stage_trains_on_moved_masks():
    stage = Stage("moved", policies.all_blocks(), 1e-2, epochs=2, augment=flip())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    masks = MASKS.copy()
    masks[:, 0] = 255
    run = fit_stages(segmenter(), [stage], (X, masks), loss=loss, verbose=0)
    assert np.isfinite(run.history["loss"]).all()


class Own(layers.Layer):
    def call(self, x):
        return x[:, ::-1]


HALF, BOTH = MASKS[:, ::2, ::2, None], {"kind": Y, "mask": MASKS}


@pytest.mark.parametrize(
    ("augmentation", "labels", "message"),
    [
        (layers.MixUp(), Y, r"one-hot labels.*found labels of shape \(32,\).*to_categorical"),
        (keras.Sequential([flip(), layers.CutMix()]), Y[:, None], "one-hot labels"),
        (layers.MixUp(), MASKS, "found MixUp"),
        (layers.AugMix(), MASKS, "found AugMix"),
        (Own(), MASKS, r"found Own.*function of \(x, y\)"),
        (flip(), HALF, "found RandomFlip"),
        (flip(), BOTH, "found RandomFlip"),
    ],
    ids=range(7),
)
def test_what_labels_could_not_follow_is_refused(augmentation, labels, message):
    with pytest.raises(ValueError, match=message):
        augment.check(augmentation, (X, labels))


def test_weights_that_would_have_to_follow_are_refused():
    with pytest.raises(ValueError, match="without sample_weight for MixUp"):
        augment.check(layers.MixUp(), (X, ONE_HOT, np.ones(32)))
    with pytest.raises(ValueError, match="without sample_weight for RandomFlip"):
        augment.check(flip(), (X, MASKS, np.ones(MASKS.shape)))
    augment.check(flip(), (X, MASKS, np.ones(32)))


def test_what_leaves_labels_right_is_taken():
    augment.check(flip(), (X, Y))
    augment.check(keras.Sequential([layers.RandomContrast(0.2)]), (X, MASKS))
    augment.check(lambda x, y: (x, y), (X, BOTH))

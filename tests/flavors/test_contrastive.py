import keras
import keras_cv
import numpy as np
import pytest
from keras import ops

from tlkeras.flavors import contrastive


def encoder():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    return keras.Model(inputs, keras.layers.Conv2D(8, 3, strides=2)(x))  # a map: SimCLR pools it


def pictures(count=32):
    """Plain ones of random colours, with some noise."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(20, 230, (count, 1, 1, 3))
    return (colours + rng.normal(0, 5, (count, 8, 8, 3))).astype("float32")


def trained(x, epochs=1, **options):
    keras.utils.set_random_seed(0)
    model = contrastive.SimCLR(encoder(), **options)
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    batch = {} if isinstance(x, contrastive.Pairs) else {"batch_size": 16}
    return model, model.fit(x, epochs=epochs, verbose=0, **batch).history


def by_definition(first, second, temperature):
    """Equation 1 of the paper, term by term."""
    views = [v / np.linalg.norm(v) for v in (*first, *second)]
    n, found = len(first), []
    for i, view in enumerate(views):
        weights = [np.exp(view @ other / temperature) for other in views]
        found.append(-np.log(weights[(i + n) % (2 * n)] / (sum(weights) - weights[i])))
    return np.mean(np.reshape(found, (2, n)), axis=0)


def test_nt_xent_is_the_papers_and_half_of_kerascvs():
    first, second = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    ours = ops.convert_to_numpy(contrastive.nt_xent(first, second, 0.5))
    np.testing.assert_allclose(ours, by_definition(first, second, 0.5), rtol=1e-5)
    theirs = float(keras_cv.losses.SimCLRLoss(0.5)(first, second))
    assert theirs == pytest.approx(2 * ours.mean(), rel=1e-5)


def test_what_is_watched_is_the_mean_cosine_of_partners_and_of_all_others():
    x = pictures(6)
    model = contrastive.SimCLR(encoder())
    model.compile("adam", jit_compile=False)
    watched = model.evaluate(x, verbose=0, return_dict=True)
    views = ops.convert_to_numpy(model(x))
    flat = views.swapaxes(0, 1).reshape(12, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosines, partner = flat @ flat.T, np.arange(12) % 6
    others = cosines[partner[:, None] != partner]
    assert watched["others"] == pytest.approx(others.mean(), abs=1e-5)
    assert watched["partners"] == pytest.approx(1, abs=1e-5)  # not training: nothing is changed


def test_training_tells_pictures_apart_and_teaches_the_encoder_in_place():
    model, history = trained(pictures(), epochs=20, augment=keras.layers.RandomFlip())
    assert history["loss"][-1] < history["loss"][0] - 0.5
    assert history["others"][-1] < history["others"][0] - 0.2
    assert history["partners"][-1] > 0.9
    fresh = trained(pictures(), epochs=1)[0].encoder.get_weights()
    assert not np.allclose(model.encoder.get_weights()[0], fresh[0])


def test_without_others_to_be_told_from_it_collapses_and_one_sees_it():
    def alignment(first, second):
        return -ops.sum(ops.normalize(first, axis=1) * ops.normalize(second, axis=1), axis=1)

    noise = keras.layers.RandomBrightness(0.2)
    _, history = trained(pictures(), epochs=20, augment=noise, loss=alignment)
    assert history["others"][-1] > 0.98


def test_frozen_layers_stay_and_kerascvs_loss_fits():
    network = encoder()
    network.layers[-1].trainable = False
    before = network.get_weights()
    model = contrastive.SimCLR(network, loss=keras_cv.losses.SimCLRLoss(0.1))
    model.compile("adam", jit_compile=False)
    model.fit(pictures(), batch_size=16, verbose=0)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_pairs_are_of_one_group_new_each_epoch_and_of_every_picture():
    groups = np.repeat(["a", "b", "c"], [4, 3, 1])
    pairs = contrastive.Pairs(np.arange(8), groups, batch_size=4)
    seen = []
    for _ in range(3):
        batches = [pairs[i][0] for i in range(len(pairs))]
        first, second = (np.concatenate(part) for part in zip(*batches, strict=True))
        assert sorted(first) == list(range(8))
        assert (groups[first] == groups[second]).all()
        assert ((first != second) | (first == 7)).all()  # 7 is alone
        seen.append(dict(zip(first.tolist(), second.tolist(), strict=True)))
        pairs.on_epoch_end()
    assert seen[0] != seen[1] or seen[1] != seen[2]


def test_pairs_train_and_repeat_with_the_seed():
    data = [contrastive.Pairs(pictures(), np.arange(32) // 2, 16, seed=3) for _ in "ab"]
    (_, one), (_, two) = trained(data[0], 2), trained(data[1], 2)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("groups", "batch"), [(np.zeros(3), 2), (np.zeros(4), 5), (np.zeros(4), 0)]
)
def test_pairs_refuse_what_does_not_fit(groups, batch):
    with pytest.raises(ValueError, match="a group for each of 4 images"):
        contrastive.Pairs(np.zeros((4, 2)), groups, batch)

import keras
import numpy as np
import pytest
from keras import ops
from small import easy_data, small_backbone, with_head

from tlkeras.flavors import domain


def reversed_once(strength, rise=0):
    """A chain of two weights of 1 with the reversal between; the lower one is what is reversed."""
    x = keras.Input((1,))
    low = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="low")(x)
    high = domain.GradientReversal(strength, rise, name="back")(low)
    y = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="high")(high)
    model = keras.Model(x, y)
    model.compile(keras.optimizers.SGD(0.1), "mae")
    return model


def weight(model, name):
    return float(ops.convert_to_numpy(model.get_layer(name).kernel)[0, 0])


LOSSES = {
    "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "domain": keras.losses.BinaryCrossentropy(from_logits=True),
}
ONE, ZERO = np.ones((1, 1), "float32"), np.zeros((1, 1), "float32")


def test_reversal_passes_on_the_input_bit_by_bit_and_turns_the_gradient():
    odd = np.array([[0.1, -3e8, 1e-30]], "float32")
    assert np.array_equal(ops.convert_to_numpy(domain.GradientReversal(7.0)(odd)), odd)
    model = reversed_once(0.5)
    model.fit(ONE, ZERO, verbose=0)  # gradient of |1 x 1 - 0|: 1 for either weight
    assert weight(model, "high") == pytest.approx(1 - 0.1)
    assert weight(model, "low") == pytest.approx(1 + 0.5 * 0.1)


def test_the_strength_rises_as_ganin_and_others_say_and_goes_on_after_loading(tmp_path):
    model = reversed_once(1.0, rise=100)
    model.fit(ONE, ZERO, verbose=0)
    assert weight(model, "low") == pytest.approx(1.0)  # the first step: not at all
    model.fit(ONE, ZERO, epochs=49, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert float(ops.convert_to_numpy(again.get_layer("back").steps)) == 50
    for name in ("low", "high"):
        again.get_layer(name).kernel.assign(ONE)
    again.fit(ONE, ZERO, verbose=0)
    assert weight(again, "low") == pytest.approx(1 + 0.1 * (2 / (1 + np.exp(-5)) - 1))


def test_predicting_counts_no_step():
    model = reversed_once(1.0, rise=100)
    model.predict(ONE, verbose=0)
    assert float(ops.convert_to_numpy(model.get_layer("back").steps)) == 0


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        domain.GradientReversal(-1)


def two_clouds(n=200, seed=0):
    """Feature 1 tells the source's class, and feature 2 the domain."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    source = rng.normal(0, 1, (n, 3)).astype("float32") + [0, 0, 3]
    target = rng.normal(0, 1, (n, 3)).astype("float32") - [0, 0, 3]
    source[:, 1] += 3 * (labels - 0.5)
    return source.astype("float32"), labels, target.astype("float32")


def classifier():
    x = keras.Input((3,))
    hidden = keras.layers.Dense(8, "relu", name="hidden")(x)
    return keras.Model(x, keras.layers.Dense(2, name="logits")(hidden))


def stepped(strength):
    """The weights below both outputs after one step of plain gradient descent, and the model."""
    keras.utils.set_random_seed(0)
    source, labels, target = two_clouds()
    both = domain.adversarial(classifier(), "hidden", strength)
    both.compile(keras.optimizers.SGD(0.01), LOSSES)
    x, y, weights = domain.two_domains(source, labels, target)
    both.fit(x, y, len(x), sample_weight=weights, verbose=0)
    return ops.convert_to_numpy(both.get_layer("hidden").kernel), both, (x, y, weights)


def test_an_adversarial_model_moves_the_shared_layer_against_the_domain_classifier():
    plain, both, data = stepped(0.0)
    once, twice = stepped(1.0)[0] - plain, stepped(2.0)[0] - plain
    assert np.allclose(twice, 2 * once, atol=1e-6)
    assert np.abs(once).max() > 1e-4
    losses = []
    for kernel in (plain, plain + once):
        both.get_layer("hidden").kernel.assign(kernel)
        x, y, weights = data
        found = both.evaluate(x, y, 400, sample_weight=weights, verbose=0, return_dict=True)
        losses.append(found["domain_loss"])
    assert losses[1] > losses[0]


def test_a_classifier_learns_from_labels_beside_its_adversary():
    keras.utils.set_random_seed(0)
    source, labels, target = two_clouds()
    model = classifier()
    both = domain.adversarial(model, "hidden", rise=100)
    both.compile(keras.optimizers.Adam(0.01), LOSSES)
    x, y, weights = domain.two_domains(source, labels, target)
    both.fit(x, y, sample_weight=weights, epochs=15, verbose=0)
    right = np.argmax(model.predict(source, verbose=0), axis=1) == labels
    assert right.mean() > 0.85


def test_maps_are_pooled_and_layers_that_cannot_be_seen_are_refused():
    model = with_head(small_backbone(), nested=False)
    both = domain.adversarial(model, "stack2_relu")
    assert both.output["domain"].shape == (None, 1)
    with pytest.raises(ValueError, match="not 'stack2_relu'"):
        domain.adversarial(with_head(small_backbone()), "stack2_relu")


def test_a_layer_that_is_in_another_graph_too_is_taken_in_this_one():
    model = classifier()
    x = keras.Input((3,))
    again = keras.Model(x, model.get_layer("logits")(model.get_layer("hidden")(x)))
    assert domain.adversarial(again, "hidden").input is again.input


def test_the_loss_of_either_output_is_the_mean_over_what_is_known():
    labels = np.array([1, -1, 0, 1])
    x, y, weights = domain.two_domains(np.ones((4, 2)), labels, np.ones((12, 2)))
    assert x.shape == (16, 2)
    assert y["label"].min() == 0  # -1 is no class, and its weight is 0
    assert np.allclose(weights["label"], [16 / 3, 0, 16 / 3, 16 / 3] + 12 * [0])
    assert weights["label"].mean() == pytest.approx(1)
    sides = y["domain"][:, 0]
    for side in (0, 1):
        assert weights["domain"][sides == side].sum() == pytest.approx(8)


@pytest.mark.parametrize(
    ("labels", "target"),
    [([0, 1], np.ones((2, 3))), ([0], np.ones((2, 2))), ([-1, -1], np.ones((2, 2)))],
)
def test_domains_that_do_not_fit_are_refused(labels, target):
    with pytest.raises(ValueError, match="Expected source and target inputs of one shape"):
        domain.two_domains(np.ones((2, 2)), np.array(labels), target)


def test_coral_gives_the_targets_mean_spread_and_correlations():
    rng = np.random.default_rng(0)
    source = rng.normal(0, 1, (500, 4)) @ rng.normal(0, 1, (4, 4)) + 3
    target = rng.normal(0, 1, (400, 4)) @ rng.normal(0, 1, (4, 4)) - 1
    moved = domain.coral(source, target, ridge=1e-6)
    assert np.allclose(moved.mean(axis=0), target.mean(axis=0))
    assert np.allclose(np.cov(moved.T), np.cov(target.T), rtol=0.02, atol=0.02)
    only_scaled = domain.coral(source, target, ridge=1e6)
    assert np.allclose(only_scaled.std(axis=0), target.std(axis=0), rtol=1e-3)
    assert np.allclose(np.corrcoef(only_scaled.T), np.corrcoef(source.T), atol=1e-3)


def test_coral_refuses_maps():
    with pytest.raises(ValueError, match="features"):
        domain.coral(np.ones((2, 3, 3)), np.ones((2, 3, 3)))


@pytest.mark.parametrize("trainable", [True, False])
def test_batchnorm_gets_the_statistics_of_other_images(trainable):
    model = with_head(small_backbone())
    model.trainable = trainable
    before = {v.path: ops.convert_to_numpy(v) for v in model.variables}
    images = 5 + 2 * easy_data(60)[0]
    assert domain.adapt_batchnorm(model, images, batch_size=60) == 3
    moved = {v.path for v in model.variables if not np.array_equal(v, before[v.path])}
    assert all("moving" in path for path in moved)
    assert len(moved) == 6
    first = model.layers[1].get_layer("stack0_bn")
    maps = ops.convert_to_numpy(model.layers[1].get_layer("stack0_conv")(images))
    assert np.allclose(first.moving_mean, maps.mean(axis=(0, 1, 2)), atol=1e-4)
    in_parts = ops.convert_to_numpy(first.moving_variance)
    domain.adapt_batchnorm(model, images, batch_size=7)
    assert np.allclose(first.moving_variance, in_parts, rtol=0.02)  # batches differ in size by one
    assert "call" not in vars(first)  # as it was


def test_adapting_needs_images_and_batchnorm():
    with pytest.raises(ValueError, match="found 0 such layers"):
        domain.adapt_batchnorm(classifier(), np.ones((2, 3)))
    with pytest.raises(ValueError, match="0 images"):
        domain.adapt_batchnorm(with_head(small_backbone()), np.ones((0, 16, 16, 3)))


def test_information_wants_sure_answers_of_all_classes():
    sure = np.eye(4)[np.arange(40) % 4]
    assert domain.information(sure) == pytest.approx(np.log(4))
    assert domain.information(np.eye(4)[np.zeros(40, int)]) == pytest.approx(0)  # always the same
    assert domain.information(np.full((40, 4), 0.25)) == pytest.approx(0)  # never sure
    with pytest.raises(ValueError, match="add up to 1"):
        domain.information(np.ones((3, 4)))

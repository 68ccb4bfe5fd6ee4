"""Training on cached outputs is training: same weights, same history, or it says why not."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone

from tlkeras.blocks.find import find_blocks
from tlkeras.features.cached_evaluate import evaluate
from tlkeras.features.frozen_part import NotExact, find_frozen_part
from tlkeras.features.store import FeatureCache, Features
from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze
from tlkeras.plans import recipes
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=3)
LAST = Stage("last", policies.last_blocks(1), learning_rate=1e-3, epochs=2)
PLANS = {
    "head_only": recipes.head_only(3, 1e-2),
    "two_stage": recipes.two_stage(2, 2, 1e-2, 1e-3),
    "progressive": recipes.progressive(1, 1, 1e-2, 1e-3, blocks=3),
    "middle_only": recipes.middle_only(2, 2, 1e-2, 1e-3),
    "affine": recipes.two_stage(2, 2, 1e-2, 1e-3, blocks=2, batchnorm="affine"),
    "train": recipes.two_stage(2, 2, 1e-2, 1e-3, batchnorm="train"),
}


def dropout_head(nested=True):
    backbone = small_backbone()
    image = keras.Input((16, 16, 3)) if nested else backbone.input
    x = keras.layers.GlobalAveragePooling2D()(backbone(image) if nested else backbone.output)
    x = keras.layers.Dropout(0.4)(x)
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x))


def trained(plan, data, cache, nested=True, **options):
    keras.utils.set_random_seed(0)
    model = dropout_head(nested)
    options = {"validation_data": easy_data(12, seed=1), "verbose": 0, "seed": 1} | options
    run = fit_stages(model, plan, data, cache=cache, **options)
    return model, run


def difference(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def same(plan, make_data, **options):
    """Trains with and without the cache; both must come out alike."""
    with_cache, run = trained(plan, make_data(), True, **options)
    without, plain = trained(plan, make_data(), False, **options)
    assert difference(with_cache, without) < 1e-5
    assert list(run.history) == list(plain.history)
    for name, column in run.history.items():
        if name != "stage":
            np.testing.assert_allclose(column, plain.history[name], rtol=1e-3, atol=1e-4)
    return run


def uneven():
    return easy_data(45)  # the last batch is smaller


def dataset(shuffle=True):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("shuffles with TensorFlow")
    data = tf.data.Dataset.from_tensor_slices(easy_data(45))
    return (data.shuffle(45, seed=7) if shuffle else data).batch(8)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.rng = x, y, np.random.default_rng(0)
        self.order = np.arange(len(y))

    def __len__(self):
        return 5

    def __getitem__(self, i):
        rows = self.order[i::5]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.y))


@pytest.mark.parametrize("recipe", PLANS)
def test_every_recipe_ends_at_the_same_weights(recipe):
    plan = PLANS[recipe]
    stages = getattr(plan, "stages", plan)[:3]  # in a fourth all blocks learn
    run = same(stages, uneven)
    assert all(stage.cache.startswith("after st") for stage in run.stages)


@pytest.mark.parametrize("make_data", [dataset, lambda: dataset(False), lambda: Batches(*uneven())])
def test_data_that_bring_their_order_keep_it(make_data):
    same([HEAD, LAST], make_data)


@pytest.mark.parametrize("make_data", [uneven, dataset, lambda: Batches(*uneven())])
def test_views_come_in_the_order_of_the_examples(make_data):
    halved = keras.layers.Rescaling(0.5)  # all views of an image are one
    same([Stage("head", policies.head_only(), 1e-2, 3, augment=halved, views=2)], make_data)


def test_a_flat_model_is_cut_as_well():
    same([HEAD, LAST], uneven, nested=False)


def test_weights_of_examples_and_of_classes_count_as_without_the_cache():
    x, y = uneven()
    weights = np.random.default_rng(0).uniform(0.1, 3, len(y)).astype("float32")
    same([HEAD], lambda: (x, y, weights))
    same([HEAD], uneven, class_weight={0: 5.0, 1: 0.2, 2: 1.0})


def test_several_outputs_have_their_own_losses_and_metrics():
    def train(cache):
        keras.utils.set_random_seed(0)
        backbone = small_backbone()
        image = keras.Input((16, 16, 3))
        x = keras.layers.GlobalAveragePooling2D()(backbone(image))
        kind = keras.layers.Dense(3, name="kind")(x)
        size = keras.layers.Dense(1, name="size")(x)
        model = keras.Model(image, {"kind": kind, "size": size})
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss={"kind": loss, "size": "mse"}, metrics={"kind": ["accuracy"]})
        x, y = uneven()
        data = (x, {"kind": y, "size": y.astype("float32")})
        return model, fit_stages(model, [HEAD], data, data, cache=cache, seed=1, verbose=0)

    (one, run), (other, plain) = train(True), train(False)
    assert difference(one, other) < 1e-5 and list(run.history) == list(plain.history)


def test_callbacks_see_the_whole_model_and_every_batch():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, self.model))

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model, run = trained([HEAD], uneven(), True, callbacks=[Watch()])
    assert [batch for batch, _ in seen] == [0, 1, 0, 1] and seen[0][1] is model
    assert run.stages[0].epochs == 2


def test_a_callback_that_stops_an_epoch_loop_is_obeyed():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    _, run = trained([HEAD], uneven(), True, callbacks=[Stop()])
    assert run.stages[0].epochs == 1


def test_one_pass_serves_all_stages_and_all_runs():
    shared = FeatureCache()
    data, validation = easy_data(40), easy_data(12, seed=1)
    for _ in range(2):
        trained([HEAD, LAST], data, shared, validation_data=validation)
    assert [store.computed for store in shared._stores.values()] == [52, 52]


def test_outputs_of_weights_that_changed_are_not_used():
    shared = FeatureCache()
    model, _ = trained([HEAD], uneven(), shared)
    kernel = find_blocks(model)[0].weights[0]
    kernel.assign(kernel * 0.5)
    fit_stages(model, [HEAD], uneven(), cache=shared, seed=1, verbose=0)
    assert len(shared._stores) == 2


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_output_is_that_of_the_prefix(on_disk):
    model = dropout_head()
    freeze(model, policies.head_only())
    blocks = find_blocks(model)
    part = find_frozen_part(model, blocks, 2)
    features = Features(part)
    if on_disk:
        features.to_disk()
    features.go_on_from(part, None)
    x, _ = uneven()
    rows = features.find(x[[3, 1, 3]])
    assert features.computed == 2 and rows[0] == rows[2]
    expected = keras.ops.convert_to_numpy(part.below(x[[3, 1, 3]], training=False))
    np.testing.assert_allclose(features.read(rows), expected, rtol=1e-4, atol=1e-5)


def test_large_outputs_go_to_a_file_that_no_one_can_leave_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, run = trained([HEAD], uneven(), FeatureCache(limit=100))
    assert run.stages[0].cache.endswith("on disk") and not list(tmp_path.iterdir())
    without, _ = trained([HEAD], uneven(), False)
    assert difference(model, without) < 1e-5


def test_views_of_an_image_are_drawn_once():
    flip = keras.layers.RandomFlip("horizontal", seed=0)
    stage = Stage("head", policies.head_only(), 1e-2, epochs=4, augment=flip, views=3)
    shared = FeatureCache()
    _, run = trained([stage], easy_data(40), shared, validation_data=None)
    (store,) = shared._stores.values()
    assert len(store) == 120 and store.computed == 40
    assert run.stages[0].cache.startswith("after")


def no_size():
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3)(image)
    x = keras.layers.Conv2D(4, 3, 2)(x)
    x = keras.layers.GlobalMaxPooling2D()(keras.layers.Conv2D(4, 3, 2)(x))
    return keras.Model(image, keras.layers.Dense(3)(x))


def with_random_prefix():
    image = keras.Input((16, 16, 3))
    x = keras.layers.GaussianNoise(0.1, name="noise")(image)
    x = small_backbone()(x)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


class Shift(keras.layers.Layer):
    """Random in training, and nothing about it shows that it is."""

    def call(self, x, training=False):
        return x + 5.0 if training else x


def with_hidden_randomness():
    image = keras.Input((16, 16, 3))
    x = small_backbone()(Shift()(image))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


class OwnStep(keras.Model):
    def train_step(self, *args):
        return super().train_step(*args)


def own_step():
    model = dropout_head()
    return OwnStep(model.input, model.output)


FULL = Stage("all", policies.all_blocks(), epochs=1)
DRAWN = Stage("drawn", policies.head_only(), epochs=1, augment=keras.layers.RandomFlip())


@pytest.mark.parametrize(
    ("model", "stage", "reason"),
    [
        (dropout_head, FULL, "the first block, stem, learns"),
        (dropout_head, DRAWN, "augmentation draws new images every epoch; views=k"),
        (with_random_prefix, HEAD, "frozen GaussianNoise 'noise' is random in training"),
        (own_step, HEAD, "OwnStep has its own train_step"),
        (with_hidden_randomness, HEAD, "output of the frozen blocks is different in training"),
    ],
)
def test_where_the_cache_would_not_be_exact_it_is_off_and_says_why(model, stage, reason):
    run = fit_stages(model(), [stage], easy_data(), verbose=0)
    assert reason in run.stages[0].cache
    with pytest.raises(ValueError, match=r"cache=True, but .*" + reason.split(",")[0]):
        fit_stages(model(), [stage], easy_data(), cache=True, verbose=0)


def test_a_network_that_takes_any_size_is_cut_at_the_size_of_the_data():
    model = no_size()
    stage = Stage("last", policies.last_blocks(1), epochs=1)
    assert len(find_blocks(model)) > 2
    run = fit_stages(model, [stage], easy_data(), cache=True, verbose=0)
    assert run.stages[0].cache.startswith("after")


def test_an_open_image_size_is_cut_where_the_size_is_known():
    model = no_size()
    part = find_frozen_part(model, find_blocks(model), len(find_blocks(model)) - 1)
    assert part.shape == (4,)


def test_a_prefix_with_nowhere_to_cut_is_refused():
    model = no_size()
    with pytest.raises(NotExact, match="size is open"):
        find_frozen_part(model, find_blocks(model), 1)


def test_data_that_change_from_epoch_to_epoch_are_noticed():
    class Changing(Batches):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + np.float32(self.rng.normal()), y

    with pytest.warns(RuntimeWarning, match=r"45 examples of epoch 2 were not in the epoch before"):
        _, run = trained([HEAD], Changing(*uneven()), "auto")
    assert run.stages[0].cache.startswith("off: 45 examples of epoch 2")
    with pytest.raises(ValueError, match=r"cache=True, but 45 examples"):
        trained([HEAD], Changing(*uneven()), True)


@pytest.mark.parametrize("cache", ["yes", 3, None])
def test_a_cache_that_is_none_of_the_choices_is_refused(cache):
    with pytest.raises(ValueError, match=r"cache must be 'auto', 'disk', True, False"):
        trained([HEAD], uneven(), cache)


def test_evaluating_what_was_validated_on_needs_no_pass():
    shared, validation = FeatureCache(), easy_data(12, seed=1)
    trained_model, _ = trained([HEAD], uneven(), shared, validation_data=validation)
    (store,) = shared._stores.values()
    before = store.computed
    found = evaluate(trained_model, validation, shared)
    assert store.computed == before
    expected = trained_model.evaluate(*validation, verbose=0, return_dict=True)
    assert found == pytest.approx(expected, abs=1e-5)


def test_evaluating_where_nothing_can_be_cached_still_evaluates():
    trained_model, _ = trained([FULL], uneven(), "auto")
    found = evaluate(trained_model, uneven(), FeatureCache())
    assert found == trained_model.evaluate(*uneven(), verbose=0, return_dict=True)

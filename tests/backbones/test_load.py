"""load_backbone: one call for every source, pixels in [0, 255] for all of them."""

import hashlib
import inspect
import json

import keras
import numpy as np
import pytest

import tlkeras as tlk
from tlkeras.backbones import applications, presets
from tlkeras.utils import paths


def images(size=32, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (2, size, size, 3)).astype("float32")


@pytest.fixture(scope="module")
def network():
    import keras_hub

    keras.utils.set_random_seed(0)
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=True,
    )


@pytest.fixture
def preset(network, tmp_path):
    """A small KerasHub preset folder that scales to [-1, 1], with its card."""
    import keras_hub

    folder = tmp_path / "tiny"
    network.save_to_preset(str(folder))
    converter = keras_hub.layers.ResNetImageConverter(scale=1 / 127.5, offset=-1.0)
    converter.save_to_preset(str(folder))
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    (folder / "card.json").write_text(json.dumps({"files": files}))
    return folder


def test_a_preset_scales_as_its_converter_says(preset, network):
    x = images()
    expected = network.predict(x / 127.5 - 1, verbose=0)
    np.testing.assert_allclose(
        tlk.load_backbone(preset).predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4
    )


def test_a_preset_takes_any_size_or_the_one_asked_for(preset):
    assert tlk.load_backbone(preset).input_shape == (None, None, None, 3)
    assert tlk.load_backbone(preset, image_size=32).input_shape == (None, 32, 32, 3)
    assert tlk.load_backbone(preset, image_size=(32, 48)).input_shape == (None, 32, 48, 3)


def test_a_damaged_preset_is_refused(preset):
    weights = preset / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"model\.weights\.h5 .* not the file.*reinstall"):
        tlk.load_backbone(preset)
    weights.unlink()
    assert presets.damaged_files(preset) == ["model.weights.h5"]


def test_weights_none_is_the_same_network_untrained(preset, tmp_path):
    trained, fresh = tlk.load_backbone(preset), tlk.load_backbone(preset, weights=None)
    assert [w.shape for w in trained.weights] == [w.shape for w in fresh.weights]
    assert (trained.get_weights()[0] != fresh.get_weights()[0]).any()
    again = tlk.load_backbone(trained, weights=None)
    assert (trained.get_weights()[0] != again.get_weights()[0]).any()


def test_a_preset_without_a_converter_says_so(preset):
    (preset / "image_converter.json").unlink()
    (preset / "card.json").unlink()
    with pytest.warns(UserWarning, match="as they are"):
        tlk.load_backbone(preset)


def test_a_network_of_one_size_gets_a_resizing_layer(tmp_path):
    import keras_hub

    vit = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=4
    )
    vit.save_to_preset(str(tmp_path / "vit"))
    converter = keras_hub.layers.ViTImageConverter(image_size=(16, 16), scale=[0.1] * 3)
    converter.save_to_preset(str(tmp_path / "vit"))
    assert tlk.load_backbone(tmp_path / "vit", image_size=16).input_shape == (None, 16, 16, 3)
    resized = tlk.load_backbone(tmp_path / "vit", image_size=32)
    assert resized.predict(images(), verbose=0).shape == (2, 5, 4)


@pytest.mark.parametrize("name", applications.functions())
def test_every_applications_preprocessing_becomes_layers(name, tmp_path):
    """To [-1, 1]; BGR minus a mean; mean and deviation; or nothing: safe to save and reload."""
    preprocess = inspect.getmodule(getattr(keras.applications, name)).preprocess_input
    image = keras.Input((None, None, 3))
    x = images(4)
    scaled = keras.layers.Identity()(applications._as_layers(preprocess, image))
    model = keras.Model(image, scaled)
    np.testing.assert_allclose(model(x), preprocess(x.copy()), rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(model(x), again(x))


def test_an_application_brings_its_own_preprocessing():
    backbone = tlk.load_backbone("mobilenetv2", image_size=32, weights=None)
    plain = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    plain.set_weights(backbone.get_weights())
    x = images()
    expected = plain.predict(x / 127.5 - 1, verbose=0)
    np.testing.assert_allclose(backbone.predict(x, verbose=0), expected, rtol=1e-3, atol=1e-5)
    assert tlk.load_backbone("MobileNetV2", weights=None).input_shape == (None, None, None, 3)


def test_the_classifier_of_a_saved_model_is_cut_off(preset, tmp_path):
    backbone = tlk.load_backbone(preset, image_size=32)
    tlk.add_head(backbone, 3).save(tmp_path / "mine.keras")
    again = tlk.load_backbone(tmp_path / "mine.keras")
    assert again.name == "mine" and again.output_shape == backbone.output_shape
    x = images()
    np.testing.assert_allclose(again(x, training=False), backbone(x, training=False), atol=1e-6)
    backbone.save(tmp_path / "features.keras")
    assert tlk.load_backbone(tmp_path / "features.keras").output_shape == backbone.output_shape


def test_a_model_is_returned_as_it_is(network):
    assert tlk.load_backbone(network) is network


def test_a_model_of_another_size_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"takes images of shape \(16, 16, 3\), not \(32, 32\)"):
        tlk.load_backbone(model, image_size=32)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "flat.keras")
    with pytest.raises(ValueError, match=r"takes images of shape \(4,\), not \(32, 32\)"):
        tlk.load_backbone(tmp_path / "flat.keras", image_size=32)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("mobilnetv2", ValueError, "'MobileNetV2'"),
        ("resnet_50_imagnet", ValueError, "'resnet_50_imagenet'"),
        ("missing.keras", FileNotFoundError, "missing.keras"),
        (__file__, ValueError, "no .keras file"),
    ],
)
def test_what_cannot_be_found_says_what_can(source, error, says):
    with pytest.raises(error, match=says):
        tlk.load_backbone(source)


@pytest.mark.parametrize("folder", paths.presets(), ids=lambda folder: folder.name)
def test_the_presets_that_come_along_are_whole(folder):
    assert (folder / "card.json").exists() and not presets.damaged_files(folder)
    tower = {"tower": "image"} if folder.name.endswith("_clip") else {}
    backbone = tlk.load_backbone(folder.name, image_size=32, **tower)
    assert folder.name in backbone.name
    assert np.isfinite(backbone.predict(images(), verbose=0)).all()


@pytest.fixture(scope="module")
def lite0():
    return tlk.load_backbone("efficientnet_lite0", image_size=64)


@pytest.mark.parametrize(
    ("photo", "top"),
    [
        ("china.jpg", ["palace", "bell_cote", "lakeside", "monastery", "boathouse"]),
        ("flower.jpg", ["daisy", "mushroom", "hen-of-the-woods", "pot", "bee"]),
    ],
)
def test_the_classifier_knows_what_is_in_a_photograph(photo, top):
    from keras_hub.utils import decode_imagenet_predictions
    from sklearn.datasets import load_sample_image

    classifier = tlk.load_classifier()
    guesses = classifier.predict(load_sample_image(photo)[None], verbose=0)
    np.testing.assert_allclose(guesses.sum(), 1, rtol=1e-4)
    assert [name for name, _ in decode_imagenet_predictions(guesses, top=5)[0]] == top


def test_the_classifier_is_the_backbone_and_a_head(tmp_path):
    classifier = tlk.load_classifier("efficientnet_lite0")
    assert tlk.find_blocks(classifier)[-1].role == "head"
    backbone = tlk.load_backbone("efficientnet_lite0")
    for ours, whole in zip(backbone.weights, classifier.weights, strict=False):
        np.testing.assert_array_equal(ours, whole)
    classifier.save(tmp_path / "c.keras")
    again = keras.saving.load_model(tmp_path / "c.keras")
    x = images(96)
    np.testing.assert_allclose(again(x), classifier(x), atol=1e-6)


def test_a_network_can_be_cut_at_the_input_or_output_of_a_layer(lite0):
    classifier = tlk.load_classifier()
    below = keras.Model(classifier.input, classifier.layers[-1].input)
    assert below.output_shape == (None, 1280)
    network = lite0.get_layer("efficient_net_backbone")
    middle = network.get_layer("block3a_project_bn").output
    head = keras.Model(middle, network.output)
    x = images(96)
    halves = head(keras.Model(network.input, middle)(x))
    np.testing.assert_allclose(halves, network(x), rtol=1e-4, atol=1e-4)


def test_a_network_without_a_classifier_says_which_has_one(preset):
    for source in ("glyph_resnet", preset, "nothing"):
        with pytest.raises(ValueError, match="expected efficientnet_lite0, or"):
            tlk.load_classifier(source)


def test_lite0_takes_pixels_and_scales_them_itself(lite0):
    import keras_hub

    folder = paths.data_root() / "presets" / "efficientnet_lite0"
    plain = keras_hub.models.Backbone.from_preset(str(folder))
    assert {weight.dtype for weight in plain.weights} == {"float32"}
    x = images(64)
    expected = plain.predict((x - 127) / 128, verbose=0)
    np.testing.assert_allclose(lite0.predict(x, verbose=0), expected, rtol=1e-3, atol=1e-4)


def test_lite0_has_the_stages_one_expects(lite0):
    blocks = tlk.find_blocks(lite0)
    assert [block.name for block in blocks] == ["stem", "block2", "block3", "block4-5", "block6-7"]
    assert all(block.cut is not None for block in blocks)
    for size, out in ((64, 2), (65, 3), (224, 7)):
        side = tlk.load_backbone("efficientnet_lite0", image_size=size).output_shape
        assert side == (None, out, out, 1280)


def test_lite0_trains_in_two_stages_from_cached_features_and_stays_frozen(lite0, tmp_path):
    """All layers are Keras's, one by one: so the cache needs no trial, a file forgets nothing."""
    x, y = images(64).repeat(8, axis=0), np.arange(16) % 2
    model = tlk.add_head(lite0, 2)
    plan = tlk.recipes.two_stage(head_epochs=2, tune_epochs=1)
    run = tlk.fit_stages(model, plan, (x, y), validation_data=(x, y), verbose=False)
    assert run.stages[0].cache.startswith("after block6-7")
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert [weight.trainable for weight in again.weights] == [w.trainable for w in model.weights]
    assert not all(weight.trainable for weight in again.weights)
    np.testing.assert_allclose(again(x), model(x, training=False), atol=1e-5)

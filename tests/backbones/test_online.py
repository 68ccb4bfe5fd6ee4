"""What is downloaded in the online profile, without the internet: tiny networks, local servers."""

import hashlib
import inspect
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import (
    SIDE,
    bert,
    clip,
    dinov2,
    dinov3,
    efficientnet,
    images,
    pali_gemma,
    resnet,
    sam,
    siglip,
    stored,
    vit,
)

import tlkeras as tlk
from tlkeras.backbones import fetching, kerascv
from tlkeras.backbones import load as loading

# On purpose; what it says of tf.data does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run")


def train_a_little(backbone, x):
    """The head, then the last block too: one step each. Eagerly, for tracing a network of
    hundreds of layers takes ten times as long as the two steps."""
    model = tlk.add_head(backbone, 2)
    stages = [
        tlk.Stage("head", tlk.policies.head_only(), epochs=1),
        tlk.Stage("top", tlk.policies.last_blocks(1), learning_rate=1e-4, epochs=1),
    ]
    y = np.arange(len(x)) % 2
    tf.config.run_functions_eagerly(True)
    try:
        run = tlk.fit_stages(model, stages, (x, y), cache=False, jit_compile=False, verbose=0)
    finally:
        tf.config.run_functions_eagerly(False)
    assert len(run.history["loss"]) == 2 and np.isfinite(run.history["loss"]).all()


# keras.applications

TRAINED = {
    "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "MobileNetV3Large": 32,
    "EfficientNetB0": 32, "DenseNet121": 32, "ResNet50": 32, "ResNet50V2": 32, "VGG16": 32,
    "VGG19": 32, "Xception": 71, "InceptionV3": 75,
}  # fmt: skip
BUILT = {"EfficientNetV2B0": 32, "NASNetMobile": 32, "ConvNeXtTiny": 32, "InceptionResNetV2": 75}


@pytest.fixture
def fresh_session():
    keras.backend.clear_session()
    yield
    keras.backend.clear_session()


@pytest.mark.parametrize("name", TRAINED)
def test_a_network_of_keras_applications_trains_stage_by_stage(name, fresh_session):
    backbone = tlk.load_backbone(name, image_size=TRAINED[name], weights=None)
    assert backbone.name == name.lower() and len(tlk.find_blocks(backbone)) > 1
    train_a_little(backbone, images(size=TRAINED[name]))


@pytest.mark.parametrize("name", BUILT)
def test_the_other_families_have_blocks_too(name, fresh_session):
    backbone = tlk.load_backbone(name, image_size=BUILT[name], weights=None)
    assert backbone.name == name.lower() and len(tlk.find_blocks(backbone)) > 1
    assert len(backbone.output_shape) == 4


# KerasHub: every architecture in the smallest configuration that works


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (resnet, (2, 4, 4, 64)),
        (efficientnet, (2, 8, 8, 1280)),
        (vit, (2, 17, 16)),
        (dinov2, (2, 17, 16)),
        (dinov3, (2, 21, 16)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_image_network_of_keras_hub_scales_and_trains(make, shape, tmp_path):
    network, folder = stored(make, tmp_path / "tiny")
    backbone, x = tlk.load_backbone(folder), images()
    scaled = x / 127.5 - 1
    wanted = keras.tree.map_structure(lambda _: scaled, network.input)
    found = backbone.predict(x, verbose=0)
    assert found.shape == shape and np.isfinite(found).all()
    np.testing.assert_allclose(found, network.predict(wanted, verbose=0), rtol=1e-3, atol=1e-3)
    assert len(tlk.find_blocks(backbone)) > 1
    train_a_little(tlk.load_backbone(folder, image_size=SIDE), x)


# SigLIP reads eight tokens, no fewer; CLIP takes the largest for the end of the text.
TOKENS = np.array([[3, 1, 2, 1, 1, 2, 1, 4], [3, 2, 2, 4, 0, 0, 0, 0]])
ONES = np.ones((2, 8), "int32")
SAM_INPUTS = {
    "images": images(size=2 * SIDE),
    "points": np.ones((2, 1, 2), "float32"),
    "labels": np.ones((2, 1), "float32"),
    "boxes": np.ones((2, 1, 2, 2), "float32"),
    "masks": np.zeros((2, 0, 2 * SIDE, 2 * SIDE, 1), "float32"),
}


@pytest.mark.parametrize(
    ("make", "inputs", "shapes"),
    [
        (clip, {"images": images(), "token_ids": TOKENS}, {"vision_logits": (2, 2)}),
        (siglip, {"images": images(), "token_ids": TOKENS}, {"vision_logits": (2, 2)}),
        (sam, SAM_INPUTS, {"image_embeddings": (2, 4, 4, 8)}),
        (
            pali_gemma,
            {"images": images(), "token_ids": TOKENS, "padding_mask": ONES, "response_mask": ONES},
            {"output": (2, 16 + 8, 16)},
        ),
        (
            bert,
            {"token_ids": TOKENS, "segment_ids": 0 * TOKENS, "padding_mask": ONES},
            {"sequence_output": (2, 8, 16), "pooled_output": (2, 16)},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_network_of_several_inputs_keeps_them(make, inputs, shapes, tmp_path):
    network, folder = stored(make, tmp_path / "tiny")
    loaded = tlk.load_backbone(folder)
    assert set(loaded.input) == set(inputs)
    found, expected = loaded(inputs, training=False), network(inputs, training=False)
    for name, shape in shapes.items():
        mine = found[name] if isinstance(found, dict) else found
        theirs = expected[name] if isinstance(expected, dict) else expected
        assert tuple(mine.shape) == shape and np.isfinite(mine).all()
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [clip, siglip])
def test_each_tower_gives_the_vectors_that_the_whole_network_compares(make, tmp_path):
    network, folder = stored(make, tmp_path / "tiny")
    image, text = (tlk.load_backbone(folder, tower=tower) for tower in ("image", "text"))
    assert image.name == "tiny_image" and text.name == "tiny_text"
    x = images()
    seen = image.predict(x, verbose=0)
    np.testing.assert_allclose(
        seen, network.get_vision_embeddings(x / 127.5 - 1), rtol=1e-3, atol=1e-4
    )
    read = text.predict({"token_ids": TOKENS}, verbose=0)
    np.testing.assert_allclose(read, network.get_text_embeddings(TOKENS), rtol=1e-3, atol=1e-4)
    assert seen.shape == read.shape and len(tlk.find_blocks(image)) > 2
    assert tlk.load_backbone(folder, 48, tower="image").input_shape == (None, 48, 48, 3)
    train_a_little(image, x)


def test_a_network_without_towers_says_so(tmp_path):
    _, folder = stored(bert, tmp_path / "tiny")
    with pytest.raises(ValueError, match="no image tower.*Leave out `tower`"):
        tlk.load_backbone(folder, tower="image")
    with pytest.raises(ValueError, match="no text tower"):
        tlk.load_backbone("MobileNet", image_size=32, weights=None, tower="text")
    with pytest.raises(ValueError, match="'image', 'text' or None, not 'left'"):
        tlk.load_backbone(folder, tower="left")


# The profile


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        "resnet_50_imagenet",
        "hf://dmis-lab/biobert-v1.1",
        "kaggle://keras/bert/keras/bert_base_en",
        "keras_cv://resnet50_v2_imagenet",
    ],
)
def test_offline_an_online_backbone_is_refused_at_once(name, monkeypatch):
    monkeypatch.delenv("TLKERAS_PROFILE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", None)  # whoever asks for the network breaks
    with pytest.raises(ConnectionError, match=f"{name}' is an online backbone.*'glyph_resnet'"):
        tlk.load_backbone(name)
    monkeypatch.setenv("TLKERAS_PROFILE", "online")
    with pytest.raises(ConnectionError, match="TLKERAS_PROFILE=online"):
        tlk.load_backbone(name, profile="offline")


# Weights from a local server


class Hub(BaseHTTPRequestHandler):
    """Serves `files`: bytes by the last part of the path; a function instead answers by itself."""

    files: dict = {}

    def do_GET(self):
        found = self.files.get(self.path.rpartition("/")[2])
        if callable(found):
            return found(self)
        self.send_response(404 if found is None else 200)
        if found is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        found = found or b""
        self.send_header("Content-Length", str(len(found)))
        self.send_header("ETag", f'"{hashlib.sha256(found).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    files = {}
    handler = type("OneHub", (Hub,), {"files": files})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/", files
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two networks as Keras would serve them: one whose hash it knows, and one without."""
    files = {}
    for name in ("MobileNetV3Small", "MobileNetV2"):
        network = getattr(keras.applications, name)(weights=None, include_top=False,
                                                    input_shape=(SIDE, SIDE, 3))  # fmt: skip
        path = tmp_path_factory.mktemp("served") / "weights.h5"
        network.save(path)
        files[name] = path.read_bytes(), network.get_weights()
    return files


STORED_AS = {
    "MobileNetV3Small": "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
    "MobileNetV2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
}


@pytest.fixture
def offered(server, trained, monkeypatch, tmp_path):
    """Keras asks the local server, stores below `tmp_path`, and waits for two seconds at most."""
    address, files = server
    for name in STORED_AS:
        module = inspect.getmodule(getattr(keras.applications, name))
        monkeypatch.setattr(module, "BASE_WEIGHT_PATH", address)
    module = inspect.getmodule(keras.applications.MobileNetV3Small)
    known = hashlib.md5(trained["MobileNetV3Small"][0]).hexdigest()
    monkeypatch.setitem(module.WEIGHTS_HASHES, "small_224_1.0_float", ("", known))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(fetching, "STALLED", 2)
    files |= {STORED_AS[name]: content for name, (content, _) in trained.items()}
    return files, tmp_path / "models"


def load(name):
    return tlk.load_backbone(name, image_size=SIDE, profile="online")


def loads(name, trained):
    expected = trained[name][1]
    return all(map(np.array_equal, load(name).get_weights(), expected))


@pytest.mark.parametrize("name", STORED_AS)
def test_weights_are_downloaded_once(name, offered, trained):
    files, _ = offered
    assert loads(name, trained)
    files.clear()
    assert loads(name, trained)  # from the disk


def half(request):
    """Promises 5,000 bytes and sends 1,000: a connection that broke."""
    request.send_response(200)
    request.send_header("Content-Length", "5000")
    request.end_headers()
    request.wfile.write(bytes(1000))


def stalled(request):
    """Sends 1,000 bytes of 5,000 and then nothing more, for longer than is waited."""
    half(request)
    request.wfile.flush()
    threading.Event().wait(4)


FAULTS = {
    "not there": (None, "404"),
    "half": (half, "retrieval incomplete"),
    "stalled": (stalled, "timed out"),
    "another file": (bytes(5000), "Incomplete or corrupted"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_is_one_error_and_leaves_nothing(fault, offered, trained):
    files, folder = offered
    name = "MobileNetV3Small"
    good, before = files[STORED_AS[name]], socket.getdefaulttimeout()
    files[STORED_AS[name]], reason = FAULTS[fault]
    with pytest.raises(ConnectionError, match="internet use 'efficientnet_lite0'") as error:
        load(name)
    assert reason in str(error.value) and "weights=None builds MobileNetV3Small" in str(error.value)
    assert not list(folder.iterdir()) and socket.getdefaulttimeout() == before
    files[STORED_AS[name]] = good
    assert loads(name, trained)


@pytest.mark.parametrize("killed", [False, True], ids=["now", "by a killed process"])
def test_a_damaged_file_without_a_known_hash_is_not_kept(killed, offered, trained):
    files, folder = offered
    name = STORED_AS["MobileNetV2"]
    good = files[name]
    files[name] = good[: len(good) // 2]
    if killed:
        folder.mkdir()
        (folder / name).write_bytes(files[name])
    with pytest.raises(ConnectionError, match="downloads anew"):
        load("MobileNetV2")
    assert not list(folder.iterdir())
    files[name] = good
    assert loads("MobileNetV2", trained)


def test_a_wrong_size_is_no_matter_of_the_network(offered):
    with pytest.raises(ValueError, match="at least 32x32"):
        tlk.load_backbone("MobileNetV3Small", image_size=16, profile="online")


@pytest.fixture
def hugging_face(server, monkeypatch, tmp_path):
    """The Hugging Face hub, played by the local server."""
    constants = pytest.importorskip("huggingface_hub.constants")  # newer KerasHubs bring it
    address, files = server
    monkeypatch.setattr(constants, "ENDPOINT", address.rstrip("/"))
    template = address + "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return files


def test_a_hugging_face_handle_is_loaded_like_a_folder(hugging_face, tmp_path):
    network, folder = stored(bert, tmp_path / "biobert")
    hugging_face |= {path.name: path.read_bytes() for path in folder.glob("*.*")}
    loaded = tlk.load_backbone("hf://dmis-lab/biobert-v1.1", profile="online")
    assert all(map(np.array_equal, loaded.get_weights(), network.get_weights()))


def test_a_hugging_face_image_preset_brings_its_scaling(hugging_face, tmp_path):
    _, folder = stored(vit, tmp_path / "vit")
    hugging_face |= {path.name: path.read_bytes() for path in folder.glob("*.*")}
    backbone = tlk.load_backbone("hf://someone/vit", profile="online")
    assert backbone.name == "vit" and backbone.get_layer("scale").offset == -1


@pytest.mark.parametrize("gone", ["config.json", "model.weights.h5"])
def test_a_hub_that_lacks_a_file_is_one_error(gone, hugging_face, tmp_path):
    _, folder = stored(bert, tmp_path / "biobert")
    hugging_face |= {path.name: path.read_bytes() for path in folder.glob("*.*")}
    del hugging_face[gone]
    with pytest.raises(ConnectionError, match="'hf://dmis-lab/biobert-v1.1'. Without the internet"):
        tlk.load_backbone("hf://dmis-lab/biobert-v1.1", profile="online")


# KerasCV


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2"])
def test_an_untrained_keras_cv_network_is_the_one_its_card_describes(name):
    import keras_cv

    backbone = tlk.load_backbone(f"keras_cv://{name}", image_size=SIDE, weights=None)
    card = kerascv._families(keras_cv)[name].presets[name]["metadata"]
    assert backbone.count_params() == card["params"]


def test_a_keras_cv_network_scales_once_trains_and_reloads_as_plain_keras(tmp_path):
    backbone, x = tlk.load_backbone("keras_cv://resnet18_v2", SIDE, weights=None), images()
    assert backbone.input_shape == (None, SIDE, SIDE, 3)
    scalings = [one for one in backbone._flatten_layers() if "Rescaling" in type(one).__name__]
    assert [one.scale for one in scalings] == [1 / 255]
    assert len(tlk.find_blocks(backbone)) > 3
    backbone.save(tmp_path / "plain.keras")
    assert b"keras_cv" not in (tmp_path / "plain.keras").read_bytes()
    again = tlk.load_backbone(tmp_path / "plain.keras")
    np.testing.assert_allclose(again(x, training=False), backbone(x, training=False), atol=1e-5)
    train_a_little(backbone, x)


def test_keras_cv_weights_are_loaded_through_kaggle(monkeypatch, tmp_path):
    import kagglehub
    from keras_cv.src.utils.preset_utils import save_to_preset

    network = kerascv._untrained(_family("densenet121"), "densenet121")
    save_to_preset(network, str(tmp_path))
    asked = []

    def model_download(handle, path):
        asked.append(handle)
        return str(shutil.copy(tmp_path / path, tmp_path / f"got_{path}"))

    monkeypatch.setattr(kagglehub, "model_download", model_download)
    name = "keras_cv://densenet121_imagenet"
    loaded = tlk.load_backbone(name, image_size=SIDE, profile="online")
    assert "densenet121_imagenet" in asked[0] and loaded.name == "densenet121_imagenet"
    assert all(map(np.array_equal, loaded.get_weights(), network.get_weights()))
    monkeypatch.setattr(kagglehub, "model_download", lambda *arguments: 1 / 0)
    with pytest.raises(ConnectionError, match="densenet121_imagenet'. Without the internet"):
        tlk.load_backbone(name, profile="online")


def _family(name):
    import keras_cv

    return kerascv._families(keras_cv)[name]


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("resnet18v2", None, "Did you mean .*keras_cv://resnet18_v2"),
        ("videoswin_tiny", None, "no image backbone 'videoswin_tiny'"),
        ("resnet50_v2", "pretrained", "without weights: take keras_cv://resnet50_v2_imagenet"),
    ],
)
def test_a_keras_cv_name_that_cannot_be_loaded_says_why(name, weights, says):
    with pytest.raises(ValueError, match=says):
        tlk.load_backbone(f"keras_cv://{name}", weights=weights)


def test_keras_cv_is_imported_only_where_it_is_asked_for():
    assert "keras_cv" not in vars(loading) and "keras_cv" not in vars(kerascv)

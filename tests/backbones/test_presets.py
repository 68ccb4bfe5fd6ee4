"""Building presets: training goes on where it was killed, a folder is written whole."""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from itertools import product

import keras
import measure_tasks
import numpy as np
import pytest

from tlkeras.backbones import presets
from tlkeras.utils import paths


def script(name):
    """A script beside the presets, as a module."""
    place = paths.data_root() / "presets" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"presets_{name}", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def common():
    return script("common")


@pytest.fixture(scope="module")
def lite0(common):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "common", common)
        return script("build_efficientnet_lite0")


TOKENS = {"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}


class Numbers(keras.utils.PyDataset):
    """Three batches, others each epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def __len__(self):
        return 3

    def __getitem__(self, batch):
        x = np.random.default_rng([self.epoch, batch]).normal(size=(8, 4))
        return x, (x[:, 0] > 0).astype(int)


def classifier():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(0.1), loss, metrics=["accuracy"])
    return model


def test_training_goes_on_from_its_checkpoint(common, tmp_path, capsys):
    whole, begun, ended = classifier(), classifier(), classifier()
    common.train(whole, 4, Numbers, tmp_path / "whole")
    common.train(begun, 2, Numbers, tmp_path / "parts")
    common.train(ended, 4, Numbers, tmp_path / "parts")
    np.testing.assert_array_equal(whole.get_weights()[0], ended.get_weights()[0])
    rows = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert [row.split(",")[:3] for row in rows[0]] == [row.split(",")[:3] for row in rows[1]]


def test_a_preset_is_written_with_the_hashes_of_all_its_files(common, tmp_path, capsys):
    import keras_hub

    (tmp_path / "log.csv").write_text("1,0.5,0.9,12\n2,0.4,0.95,13\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "card.md").write_text("# kept\n")
    text = keras_hub.models.CLIPTokenizer(TOKENS, ["a b"])
    common.write_preset([text], tmp_path / "out", tmp_path, {"name": "tiny"})
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["seconds"] == 25 and card["training_accuracy"] == 0.95
    assert "assets/tokenizer/vocabulary.json" in card["files"]
    assert not presets.damaged_files(tmp_path / "out")
    (tmp_path / "out" / "assets/tokenizer/vocabulary.json").write_text("{}")
    assert presets.damaged_files(tmp_path / "out") == ["assets/tokenizer/vocabulary.json"]
    assert (tmp_path / "out" / "card.md").read_text() == "# kept\n"


class Stored:
    """Numbers of a file of torch's: what it claims of them, and what is there."""

    def __init__(self, numbers, kind="FloatStorage", claims=None):
        self.numbers, self.kind = numbers, kind
        self.claims = len(numbers) if claims is None else claims


class Tensor:
    """What torch pickles of a tensor."""

    def __init__(self, storage, size, stride, offset=0):
        self.parts = storage, offset, size, stride, False, OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


class Call:
    """Pickles to the call of a function."""

    def __init__(self, *function_and_arguments):
        self.function, *self.arguments = function_and_arguments

    def __reduce__(self):
        return self.function, tuple(self.arguments)


@pytest.fixture
def torch_file(monkeypatch):
    """Writes what torch wrote before version 1.6, with as much of torch as pickling it needs."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    utils._rebuild_tensor_v2 = types.FunctionType((lambda *parts: None).__code__, {})
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write(tensors, magic=0x1950A86A20F9469CFC6C):
        file, found = io.BytesIO(), []

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing):
                if not isinstance(thing, Stored):
                    return None
                if thing not in found:
                    found.append(thing)
                kind = getattr(torch, thing.kind)
                return "storage", kind, str(found.index(thing)), "cpu", thing.claims, None

        for part in (magic, 1001, {"little_endian": True}, tensors):
            Pickler(file, protocol=2).dump(part)
        Pickler(file, protocol=2).dump([str(number) for number in range(len(found))])
        for storage in found:
            file.write(len(storage.numbers).to_bytes(8, "little") + storage.numbers.tobytes())
        file.seek(0)
        return file

    return write


SIX = np.arange(6, dtype="<f4")


def test_a_torch_file_is_read_by_its_strides_and_without_torch(lite0, torch_file):
    shared = Stored(SIX)
    tensors = {
        "turned": Tensor(shared, (2, 3), (1, 2)),
        "tail": Tensor(shared, (2,), (1,), offset=4),
        "steps": Tensor(Stored(np.array([7], "<i8"), "LongStorage"), (), ()),
    }
    read = lite0.read_torch_file(torch_file(OrderedDict(tensors)))
    np.testing.assert_array_equal(read["turned"], SIX.reshape(3, 2).T)
    np.testing.assert_array_equal(read["tail"], [4, 5])
    assert read["steps"] == 7 and read["steps"].dtype == "int64"


@pytest.mark.parametrize(
    "thing",
    [
        Call(os.system, "touch broken-into"),
        Call(eval, "open('broken-into', 'w')"),
        Call(getattr, OrderedDict, "__init__"),
        Call(subprocess.run, ["touch", "broken-into"]),
        Tensor(Call(os.system, "touch broken-into"), (1,), (1,)),
        Tensor("no storage", (1,), (1,)),
        Tensor(Stored(SIX), "no size", (1,)),
        Tensor(Stored(SIX.astype("<f2"), "HalfStorage"), (6,), (1,)),
    ],
)
def test_a_file_that_asks_for_anything_but_tensors_is_refused(
    lite0, torch_file, thing, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = torch_file({"weight": thing})
    with pytest.raises(pickle.UnpicklingError, match="asks for|Expected a"):
        lite0.read_torch_file(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "thing",
    [
        Tensor(Stored(SIX), (7,), (1,)),
        Tensor(Stored(SIX), (2, 3), (3, 2)),
        Tensor(Stored(SIX), (2,), (1,), offset=5),
        Tensor(Stored(SIX), (2,), (1,), offset=-1),
        Tensor(Stored(SIX), (2,), (-1,), offset=3),
        Tensor(Stored(SIX), (2, 3), (1,)),
        Tensor(Stored(SIX), (10**12,), (0,)),
        Tensor(Stored(SIX), (2.5,), (1,)),
        Tensor(Stored(SIX, claims=10**15), (6,), (1,)),
        Tensor(Stored(SIX, claims=5), (5,), (1,)),
        "no tensor",
    ],
)
def test_a_tensor_of_a_wrong_size_is_refused(lite0, torch_file, thing):
    with pytest.raises(ValueError, match=r"no tensor|wants more|has not the|Expected tensors"):
        lite0.read_torch_file(torch_file({"weight": thing}))


def test_a_file_cut_off_or_of_another_kind_is_refused(lite0, torch_file):
    whole = torch_file({"weight": Tensor(Stored(SIX), (6,), (1,))}).read()
    for wrong in (whole[:-1], whole + b"x", whole[:40], b""):
        with pytest.raises((ValueError, EOFError, pickle.UnpicklingError)):
            lite0.read_torch_file(io.BytesIO(wrong))
    with pytest.raises(ValueError, match="no file of torch's"):
        lite0.read_torch_file(torch_file({}, magic=1))


def test_every_tensor_has_its_place_and_none_is_left(lite0):
    """Names and shapes as in the file: numbers that tell the tensors apart come out where due."""
    import keras_hub

    backbone = lite0.network()
    classifier = keras_hub.models.EfficientNetImageClassifier(backbone, 1000)
    tensors = named_like_the_file(backbone)
    lite0.convert(tensors, backbone, classifier.output_dense)
    stem = backbone.get_layer("stem_conv").kernel
    np.testing.assert_array_equal(stem, tensors["_conv_stem.weight"].transpose(2, 3, 1, 0))
    last = [layer for layer in backbone.layers if type(layer).__name__ == "MBConvBlock"][-1]
    kernel = tensors["_blocks.15._depthwise_conv.weight"].transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(last.depthwise.kernel, kernel)
    np.testing.assert_array_equal(last.bn3.moving_mean, tensors["_blocks.15._bn2.running_mean"])
    with pytest.raises(ValueError, match=r"Nothing takes \['_blocks.16"):
        extra = {"_blocks.16._bn0.weight": np.zeros(1)}
        lite0.convert(tensors | extra, backbone, classifier.output_dense)


def named_like_the_file(backbone):
    """Random tensors with the names that the file has, in torch's layout."""
    rng, tensors = np.random.default_rng(0), {}

    def norm(name, layer):
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{part}"] = rng.normal(size=layer.gamma.shape).astype("float32")
        tensors[f"{name}.num_batches_tracked"] = np.array(1)

    def kernel(name, layer, axes=(3, 2, 0, 1)):
        shape = [layer.kernel.shape[axis] for axis in axes]
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype("float32")

    get, blocks = backbone.get_layer, [x for x in backbone.layers if hasattr(x, "output_conv")]
    kernel("_conv_stem", get("stem_conv"))
    norm("_bn0", get("stem_bn"))
    kernel("_conv_head", get("top_conv"))
    norm("_bn1", get("top_bn"))
    kernel("_blocks.0._depthwise_conv", get("block1a_dwconv"), (2, 3, 0, 1))
    norm("_blocks.0._bn1", get("block1a_dwconv_bn"))
    kernel("_blocks.0._project_conv", get("block1a_project"))
    norm("_blocks.0._bn2", get("block1a_project_bn"))
    for number, block in enumerate(blocks, start=1):
        name = f"_blocks.{number}."
        kernel(name + "_expand_conv", block.conv1)
        norm(name + "_bn0", block.bn1)
        kernel(name + "_depthwise_conv", block.depthwise, (2, 3, 0, 1))
        norm(name + "_bn1", block.bn2)
        kernel(name + "_project_conv", block.output_conv)
        norm(name + "_bn2", block.bn3)
    tensors["_fc.weight"] = rng.normal(size=(1000, 1280)).astype("float32")
    tensors["_fc.bias"] = np.zeros(1000, "float32")
    return tensors


def test_halved_weights_come_back_as_float32(lite0, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, bias_initializer="ones")])
    model.layers[0].bias.assign([1 / 3, 2 / 3, 1.0])
    model.save_weights(tmp_path / "m.weights.h5")
    before = [w.copy() for w in model.get_weights()]
    lite0.halve(tmp_path / "m.weights.h5")
    model.set_weights([np.zeros_like(w) for w in before])
    model.load_weights(tmp_path / "m.weights.h5")
    kernel, bias = model.get_weights()
    np.testing.assert_array_equal(kernel, before[0].astype("float16").astype("float32"))
    np.testing.assert_array_equal(bias, before[1])
    assert kernel.dtype == "float32" and [p.name for p in tmp_path.iterdir()] == ["m.weights.h5"]


@pytest.mark.parametrize("preset", measure_tasks.PRESETS)
def test_a_card_shows_the_numbers_that_are_stored(preset):
    card = (paths.data_root() / "presets" / preset / "card.md").read_text("utf-8")
    assert measure_tasks.targets(preset) in card


LITE0 = "efficientnet_lite0"
SHORT = {  # frozen features are behind the same network from scratch: chapter 02 says why
    ("scene_clip", "glyphs/styles"),
    ("glyph_resnet_small", "digits"),
    ("glyph_resnet", "clothes"),
    *((preset, "lesions") for preset in measure_tasks.PRESETS if preset.startswith("glyph")),
}


def test_with_few_labels_frozen_features_beat_scratch_but_where_a_chapter_says_why_not():
    """Of `clothes`, and of `efficientnet_lite0` with more than 5 labels, not all is measured."""
    rows, short = measure_tasks.stored(), set()
    for case in product(measure_tasks.PRESETS, measure_tasks.TASKS, (5, 10, 30)):
        preset, task, labels = case
        frozen, scratch = (
            measure_tasks.scores(task, method, preset, labels, rows)
            for method in ("frozen", "scratch")
        )
        if len(scratch) < 5 and (task == "clothes" or (preset, labels > 5) == (LITE0, True)):
            continue
        assert len(frozen) == len(scratch) == 5, case
        if np.mean(frozen) <= np.mean(scratch):
            short.add((preset, task))
    assert short == SHORT

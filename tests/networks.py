"""The networks that come with the repository, and untrained ones of Keras and KerasHub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np

import tlkeras as tlk

CLASSES = 3
HERE = Path(__file__).parent


def bundled(name, **options):
    return lambda: tlk.load_backbone(name, **options)


def application(name, side=32, **options):
    build = getattr(keras.applications, name)
    shape = (side, side, 3)
    return lambda: build(input_shape=shape, include_top=False, weights=None, **options)


def hub(name, **options):
    return lambda: getattr(keras_hub.models, f"{name}Backbone")(**options)


TEXT = {
    "vocabulary_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 8,
    "intermediate_dim": 8, "max_sequence_length": 6,
}  # fmt: skip
BUNDLED = {
    "efficientnet_lite0": bundled("efficientnet_lite0", image_size=32),
    "glyph_resnet": bundled("glyph_resnet", image_size=32),
    "glyph_resnet_small": bundled("glyph_resnet_small", image_size=32),
    "glyph_vit": bundled("glyph_vit"),
    "scene_clip": bundled("scene_clip", tower="image"),
}
HUB = {
    "ViT": hub(
        "ViT", image_shape=(32, 32, 3), patch_size=8, num_layers=3, num_heads=2, hidden_dim=8,
        mlp_dim=8,
    ),
    "ResNet": hub(
        "ResNet", input_conv_filters=[64], input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64, 64], stackwise_num_blocks=[1] * 3,
        stackwise_num_strides=[1, 2, 2], block_type="basic_block", image_shape=(32, 32, 3),
    ),
    "EfficientNet": hub(
        "EfficientNet", stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3, stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2], stackwise_input_filters=[8, 8, 16],
        stackwise_output_filters=[8, 16, 24], stackwise_expansion_ratios=[1, 4, 4],
        stackwise_strides=[1, 2, 2], stackwise_squeeze_and_excite_ratios=[0, 0.25, 0.25],
        stackwise_block_types=["v1", "unfused", "unfused"],
        stackwise_force_input_filters=[0] * 3, stackwise_nores_option=[False] * 3,
        input_shape=(32, 32, 3),
    ),
    "MobileNet": hub(
        "MobileNet", stackwise_expansion=[[40, 56], [64, 144]], stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]], stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]], stackwise_se_ratio=[[None] * 2, [0.25, 0.25]],
        stackwise_activation=[["relu"] * 2, ["hard_swish"] * 2],
        stackwise_padding=[[1, 1], [2, 2]], output_num_filters=32, input_num_filters=16,
        depthwise_filters=8, depthwise_stride=1, depthwise_residual=False, last_layer_filter=32,
        image_shape=(32, 32, 3),
    ),
    "Bert": hub("Bert", **TEXT),
    "DistilBert": hub("DistilBert", **TEXT),
}  # fmt: skip
APPLICATIONS = {
    "MobileNetV1": application("MobileNet", alpha=0.25),
    "MobileNetV2": application("MobileNetV2", alpha=0.35),
    "MobileNetV3Small": application("MobileNetV3Small"),
    "DenseNet121": application("DenseNet121"),
    "EfficientNetB0": application("EfficientNetB0"),
    "EfficientNetV2B0": application("EfficientNetV2B0"),
    "ResNet50V2": application("ResNet50V2"),
    "ConvNeXtTiny": application("ConvNeXtTiny"),
    "NASNetMobile": application("NASNetMobile"),
    "Xception": application("Xception", side=71),
}


def examples(model, count=4):
    """Random ones of the shapes that `model` takes, and class numbers."""
    rng = np.random.default_rng(0)

    def one(tensor):
        if len(tensor.shape) == 2:  # tokens, none of them padding
            return rng.integers(1, 2 if "segment" in tensor.name else 16, (count, 6))
        sides = [side or 32 for side in tensor.shape[1:]]
        return rng.uniform(0, 255, (count, *sides)).astype("float32")

    return keras.tree.map_structure(one, model.input), np.arange(count) % CLASSES


def trained_and_saved(make, plan, path, eager):
    """Trains an untouched network with `plan`; writes PATH.keras and PATH.npz (`reloaded.py`).

    `eager`: nothing is compiled, which takes the longest by far in a network of many layers.
    """
    keras.utils.set_random_seed(0)
    model = tlk.add_head(make(), CLASSES)
    x, y = examples(model)
    if eager:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adamw", loss, run_eagerly=True)
    run = tlk.fit_stages(model, plan, (x, y), batch_size=4, verbose=0, seed=0)
    learning = {id(weight) for weight in model.trainable_variables}
    held = {id(weight) for weight in run.stages[-1].learns.held}
    parts = x if isinstance(x, dict) else {"": x}
    states = model.optimizer.variables
    model.save(path.with_suffix(".keras"))
    np.savez(
        path.with_suffix(".npz"),
        y=y,
        learning=[id(weight) in learning for weight in model.weights],
        held=[number for number, weight in enumerate(model.weights) if id(weight) in held],
        predicted=model(x, training=False),
        unsaved=run.unsaved,
        plan=json.dumps(plan.to_dict()),
        **{f"x_{name}": part for name, part in parts.items()},
        **{f"o{number}": keras.ops.convert_to_numpy(v) for number, v in enumerate(states)},
    )


def reloaded(folder, *arguments):
    """What becomes of the models saved in `folder`, in a fresh process: by name."""
    script = HERE / "training" / "reloaded.py"
    done = subprocess.run(
        [sys.executable, script, folder, *arguments], capture_output=True, text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

"""Checks `find_blocks` on all available networks, and prints a table (slow; not run by pytest).

    python tools/sweep_blocks.py [--fast] [--only TEXT] [--exact] [--blocks]

The networks are every model of keras.applications (with and without its top), and KerasHub and
KerasCV backbones in small configurations, each flat and nested in an outer model. The checks have
their own code: every weight is in exactly one block; blocks are in data-flow order; there are at
least four blocks if ten or more layers convolve; the head has exactly the right weights; the model
splits at a cut, and (`--exact`) the halves give the output of the model. `--fast` leaves out the
largest networks, `--blocks` prints the names of the blocks.
"""

import argparse
import inspect
import os
import sys
import time
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tlkeras.blocks.find import find_blocks
from tlkeras.utils.tables import text_table

LARGE = (
    "NASNetLarge", "EfficientNetV2L", "EfficientNetV2M", "EfficientNetB7", "EfficientNetB6",
    "EfficientNetB5", "ConvNeXtXLarge", "ConvNeXtLarge", "ConvNeXtBase",
)  # fmt: skip
SHAPE = (64, 64, 3)
IMAGE = {"image_shape": SHAPE}
TRANSFORMER = {"num_layers": 3, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
PATCHES = TRANSFORMER | IMAGE | {"patch_size": 16}
TEXT = TRANSFORMER | {"vocabulary_size": 50, "max_sequence_length": 12}
VIT = {"patch_size": 16, "num_layers": 4, "num_heads": 2, "hidden_dim": 8, **IMAGE}
VITDET = {
    "image_shape": (128, 128, 3), "patch_size": 16, "hidden_size": 8, "num_layers": 3,
    "num_heads": 2, "intermediate_dim": 16, "num_output_channels": 8, "window_size": 2,
    "global_attention_layer_indices": [2],
}  # fmt: skip
MIT = IMAGE | {
    "layerwise_depths": [2, 2, 2, 2], "num_layers": 4, "layerwise_num_heads": [1, 2, 5, 8],
    "layerwise_sr_ratios": [8, 4, 2, 1], "max_drop_path_rate": 0.1,
    "hidden_dims": [8, 16, 20, 32], "layerwise_patch_sizes": [7, 3, 3, 3],
    "layerwise_strides": [4, 2, 2, 2],
}  # fmt: skip


def applications(fast):
    for name, make in sorted(vars(keras.applications).items()):
        if inspect.isfunction(make) and not (fast and name in LARGE):
            yield f"{name}", lambda make=make: make(weights=None)
            # Keras builds NASNetLarge incorrectly without a fixed size: it cannot run.
            more = {"input_shape": (331, 331, 3)} if name == "NASNetLarge" else {}
            yield (
                f"{name} no top",
                lambda make=make, more=more: make(weights=None, include_top=False, **more),
            )
            if name in ("ResNet50", "MobileNetV2", "EfficientNetB0", "DenseNet121", "VGG16"):
                yield (
                    f"{name} 96x96",
                    lambda make=make: make(
                        weights=None, include_top=False, input_shape=(96, 96, 3)
                    ),
                )


def hub():
    import keras_hub

    m = keras_hub.models
    yield from hub_convolutions(m)
    yield from hub_transformers(m, keras_hub.layers)
    yield "ResNet classifier", lambda: m.ImageClassifier(backbone=resnet(m), num_classes=5)
    yield (
        "ViT classifier",
        lambda: m.ViTImageClassifier(
            backbone=m.ViTBackbone(mlp_dim=16, **VIT), pooling="token", num_classes=5
        ),
    )
    yield (
        "BERT classifier",
        lambda: m.BertTextClassifier(backbone=m.BertBackbone(**TEXT), num_classes=5),
    )
    yield (
        "MiT segmenter",
        lambda: m.SegFormerImageSegmenter(
            backbone=m.SegFormerBackbone(projection_filters=8, image_encoder=m.MiTBackbone(**MIT)),
            num_classes=5,
        ),
    )


def resnet(m, **more):
    options = {
        "input_conv_filters": [64], "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64, 64], "stackwise_num_blocks": [2, 2, 2],
        "stackwise_num_strides": [1, 2, 2], "block_type": "basic_block",
    }  # fmt: skip
    return m.ResNetBackbone(**options | more)


def hub_convolutions(m):
    yield "ResNet v1", lambda: resnet(m)
    yield "ResNet v2", lambda: resnet(m, use_pre_activation=True)
    yield "ResNet D", lambda: resnet(
        m, input_conv_filters=[32, 32, 64], input_conv_kernel_sizes=[3, 3, 3],
        block_type="bottleneck_block_vd",
    )  # fmt: skip
    yield "EfficientNet", lambda: m.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 6, stackwise_depth_coefficients=[1.0] * 6,
        stackwise_kernel_sizes=[3] * 6, stackwise_num_repeats=[1, 2, 2, 2, 2, 1],
        stackwise_input_filters=[32, 16, 32, 48, 96, 112],
        stackwise_output_filters=[16, 32, 48, 96, 112, 192],
        stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6], stackwise_strides=[1, 2, 2, 2, 1, 2],
        stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25, 0.25, 0.25],
        stackwise_block_types=["fused"] * 3 + ["unfused"] * 3,
    )  # fmt: skip
    yield "DenseNet (KerasHub)", lambda: m.DenseNetBackbone(stackwise_num_repeats=[2, 3, 2, 2])
    yield "MobileNet (KerasHub)", lambda: m.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144, 144], [72, 72], [144, 288, 288]],
        stackwise_num_blocks=[2, 3, 2, 3],
        stackwise_num_filters=[[16, 16], [24, 24, 24], [24, 24], [48, 48, 48]],
        stackwise_kernel_size=[[3, 3], [5, 5, 5], [5, 5], [5, 5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1, 1], [1, 1], [2, 1, 1]],
        stackwise_se_ratio=[[None, None], [0.25] * 3, [0.3, 0.3], [0.3, 0.25, 0.25]],
        stackwise_activation=[
            ["relu", "relu"], ["hard_swish"] * 3, ["hard_swish"] * 2, ["hard_swish"] * 3
        ],
        stackwise_padding=[[1, 1], [2, 2, 2], [2, 2], [2, 2, 2]],
        output_num_filters=288, input_activation="hard_swish", output_activation="hard_swish",
        input_num_filters=16, depthwise_filters=8, depthwise_stride=2, depthwise_residual=False,
        squeeze_and_excite=0.5, last_layer_filter=96, **IMAGE,
    )  # fmt: skip
    yield "VGG", lambda: m.VGGBackbone([2, 2, 3, 3, 3], [4, 8, 8, 8, 8], **IMAGE)
    yield (
        "Xception (KerasHub)",
        lambda: m.XceptionBackbone(
            stackwise_conv_filters=[[8, 16], [16, 32], [64, 64]],
            stackwise_pooling=[True, True, False],
            **IMAGE,
        ),
    )
    yield "CSPNet", lambda: m.CSPNetBackbone(
        stem_filters=16, stem_kernel_size=3, stem_strides=2, stem_padding="same",
        stackwise_num_filters=[16, 16, 32, 32], stackwise_depth=[1, 2, 2, 1],
        stackwise_strides=[1, 2, 2, 2], block_type="dark_block", stage_type="dark",
        bottle_ratio=[0.5], **IMAGE,
    )  # fmt: skip
    yield "HGNetV2", lambda: m.HGNetV2Backbone(
        depths=[1, 1, 2, 1], embedding_size=8, hidden_sizes=[16, 16, 16, 16],
        stem_channels=[3, 8, 8], hidden_act="relu", use_learnable_affine_block=False,
        stackwise_stage_filters=[
            [8, 8, 16, 1, 2, 3], [16, 8, 16, 1, 2, 3], [16, 8, 16, 2, 2, 3], [16, 8, 16, 1, 2, 3]
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True], **IMAGE,
    )  # fmt: skip


def hub_transformers(m, layers):
    yield "MiT", lambda: m.MiTBackbone(**MIT)
    yield (
        "Swin",
        lambda: m.SwinTransformerBackbone(
            embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=4, **IMAGE
        ),
    )
    yield "ViT", lambda: m.ViTBackbone(mlp_dim=16, **VIT)
    yield "DeiT", lambda: m.DeiTBackbone(intermediate_dim=16, **VIT)
    yield "ViTDet", lambda: m.ViTDetBackbone(**VITDET)
    yield "SigLIP vision", lambda: m.SigLIPVisionEncoder(**PATCHES)
    words = TEXT | {"embedding_dim": 8}
    yield (
        "CLIP",
        lambda: m.CLIPBackbone(
            m.CLIPVisionEncoder(**PATCHES), m.CLIPTextEncoder(**words), projection_dim=8
        ),
    )
    yield "SAM", lambda: m.SAMBackbone(
        image_encoder=m.ViTDetBackbone(**VITDET),
        prompt_encoder=layers.SAMPromptEncoder(
            hidden_size=8, image_embedding_size=(8, 8), input_image_size=(128, 128),
            mask_in_channels=8,
        ),
        mask_decoder=layers.SAMMaskDecoder(
            num_layers=2, hidden_size=8, intermediate_dim=16, num_heads=2, embedding_dim=8,
            num_multimask_outputs=3, iou_head_depth=2, iou_head_hidden_dim=8,
        ),
    )  # fmt: skip
    yield "BERT", lambda: m.BertBackbone(**TEXT)
    yield "DistilBERT", lambda: m.DistilBertBackbone(**TEXT)
    yield "RoBERTa", lambda: m.RobertaBackbone(**TEXT)
    yield "ALBERT", lambda: m.AlbertBackbone(embedding_dim=4, **TEXT | {"num_layers": 2})
    yield "DeBERTa", lambda: m.DebertaV3Backbone(bucket_size=8, **TEXT)
    yield "GPT2", lambda: m.GPT2Backbone(**TEXT)
    yield (
        "Whisper",
        lambda: m.WhisperBackbone(
            vocabulary_size=50,
            max_encoder_sequence_length=12,
            max_decoder_sequence_length=10,
            **TRANSFORMER,
        ),
    )


def cv():
    import keras_cv

    m, options = keras_cv.models, {"include_rescaling": True, "input_shape": SHAPE}
    yield (
        "DenseNet (KerasCV)",
        lambda: m.DenseNetBackbone(stackwise_num_repeats=[2, 3, 2, 2], **options),
    )
    yield "EfficientNetV2 (KerasCV)", lambda: m.EfficientNetV2Backbone(
        stackwise_kernel_sizes=[3] * 6, stackwise_num_repeats=[1, 2, 2, 2, 2, 2],
        stackwise_input_filters=[24, 24, 48, 64, 128, 160],
        stackwise_output_filters=[24, 48, 64, 128, 160, 256],
        stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.0, 0, 0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2, 2, 1, 2],
        stackwise_conv_types=["fused"] * 3 + ["unfused"] * 3,
        width_coefficient=1.0, depth_coefficient=1.0, **options,
    )  # fmt: skip
    yield "CSPDarkNet (KerasCV)", lambda: m.CSPDarkNetBackbone(
        stackwise_channels=[8, 8, 16, 16], stackwise_depth=[1, 2, 2, 1],
        include_rescaling=False, input_shape=SHAPE,
    )  # fmt: skip
    yield (
        "MobileNetV3 (KerasCV)",
        lambda: m.MobileNetV3Backbone(
            stackwise_expansion=[1, 4.5, 3.6, 4, 6, 6],
            stackwise_filters=[16, 24, 24, 40, 40, 40],
            stackwise_kernel_size=[3, 3, 3, 5, 5, 5],
            stackwise_stride=[2, 2, 1, 2, 1, 1],
            stackwise_se_ratio=[0.25, None, None, 0.25, 0.25, 0.25],
            stackwise_activation=["relu"] * 3 + ["hard_swish"] * 3,
            **options,
        ),
    )


def nest(backbone):
    """Input -> rescaling -> backbone -> pooling -> Dropout -> Dense -> Dense."""
    inputs = keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name), backbone.input
    )
    x = inputs
    if not isinstance(x, dict):
        x = keras.layers.Rescaling(1.0, name="outer_rescaling")(x)
    x = backbone(x)
    if isinstance(x, dict):
        x = next(
            (
                x[k]
                for k in ("sequence_output", "pooled_output", "decoder_sequence_output")
                if k in x
            ),
            x[sorted(x)[0]],
        )
    rank = len(x.shape)
    if rank == 4:
        x = keras.layers.GlobalAveragePooling2D(name="outer_pool")(x)
    elif rank == 3:
        x = keras.layers.GlobalAveragePooling1D(name="outer_pool")(x)
    x = keras.layers.Dropout(0.2, name="outer_dropout")(x)
    x = keras.layers.Dense(4, activation="relu", name="outer_hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="outer_predictions")(x))


# The checks, written without the library's own graph traversal -----------------------------------


def graph_of(model):
    net = getattr(model, "_functional", None) or model
    return net if hasattr(net, "_nodes_by_depth") else None


def out_of_order(model, blocks):
    """Return the names of layers that depend, directly or not, on outputs of a later block."""
    home = {id(w): i for i, block in enumerate(blocks) for w in block.weights}
    late, met = [], set()

    def walk(net, levels):
        known = {id(t): level for t, level in zip(net.inputs, levels, strict=True)}
        for depth in sorted(net._nodes_by_depth, reverse=True):
            for node in net._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                level = max(known[id(t)] for t in node.input_tensors)
                inner = graph_of(node.operation)
                if inner is not None and len(node.input_tensors) == len(inner.inputs):
                    out = walk(inner, [known[id(t)] for t in node.input_tensors])
                else:
                    own = [w for w in getattr(node.operation, "weights", []) if id(w) not in met]
                    met.update(map(id, own))
                    places = [home[id(w)] for w in own]
                    if places and min(places) < level:
                        late.append(node.operation.name)
                    out = [max([level, *places])] * len(node.outputs)
                known.update({id(t): o for t, o in zip(node.outputs, out, strict=True)})
        return [known[id(t)] for t in net.outputs]

    walk(graph_of(model), [0] * len(graph_of(model).inputs))
    return late


def problems(name, model, blocks, head, exact):
    found = []
    counts = Counter(id(w) for block in blocks for w in block.weights)
    if set(counts) != {id(w) for w in model.weights} or max(counts.values()) > 1:
        found.append("weights")
    if sum(b.params for b in blocks) != model.count_params():
        found.append("params")
    if len(set(blocks.names)) != len(blocks) or any(n != n.strip("_ ") for n in blocks.names):
        found.append("names")
    if late := out_of_order(model, blocks):
        found.append(f"order: {late[:3]}")
    convolves = sum("Conv" in type(x).__name__ for x in model._flatten_layers())
    if convolves >= 10 and len(blocks) < 4:
        found.append("few")
    if len(blocks) > 1 and max(b.params for b in blocks[:-1]) == model.count_params():
        found.append("lump")
    last = blocks[-1]
    if head is not None and (
        last.role != "head" or {id(w) for w in last.weights} != {id(w) for w in head}
    ):
        found.append(f"head is {[x.name for x in last.layers][:4]}")
    if head is None and any(b.role == "head" for b in blocks):
        found.append("head in a backbone")
    roles = [b.role for b in blocks]
    if roles != sorted(roles, key=["bottom", "middle", "top", "head"].index):
        found.append("roles")
    able = [b.name for b in blocks[:-1] if b.cut is not None]
    if able:
        try:
            found += unlike(model, blocks, able[len(able) // 2], exact)
        except Exception as error:  # reported like any other problem
            found.append(f"split at {able[len(able) // 2]}: {error!s:.100}")
    return found


def unlike(model, blocks, name, exact):
    """Return the problems with the halves of `model`, split at the block `name`."""
    below, above = blocks.split(name)
    if {id(w) for w in below.weights} & {id(w) for w in above.weights}:
        return ["the halves share weights"]
    # KerasHub 0.32 has a wrong symbolic shape for SigLIP's patches: one token too many.
    siglip = any("SigLIP" in type(x).__name__ for x in model._flatten_layers())
    if exact and not siglip and len(model.inputs) == 1:
        shape = [n or 64 for n in model.inputs[0].shape[1:]]
        x = np.random.default_rng(0).random((2, *shape), "float32")
        whole = keras.tree.flatten(model(x, training=False))[0]
        halves = keras.tree.flatten(above(below(x, training=False), training=False))[0]
        gap = float(np.max(np.abs(np.asarray(whole) - np.asarray(halves))))
        if gap:
            return [f"halves differ by {gap:.1e}"]
    return []


def head_of(name, model):
    """Return the weights that must be the head of a flat model; None for a bare backbone."""
    if name.startswith(("VGG16", "VGG19")) and "top" not in name and "96" not in name:
        return [w for x in model.layers[-3:] for w in x.weights] if name != "VGG" else None
    if "classifier" in name or "segmenter" in name:
        inner = {id(w) for w in model.backbone.weights}
        return [w for w in model.weights if id(w) not in inner]
    if hasattr(keras.applications, name):
        if name.startswith("MobileNetV3"):
            names = ("conv_2", "logits")
        elif name.startswith("ConvNeXt"):
            names = tuple(x.name for x in model.layers[-2:])
        else:
            names = ("predictions", "conv_preds")
        return [w for x in model.layers if x.name in names for w in x.weights]
    return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT")
    options = parser.parse_args()
    rows, failures = [], 0
    for source in (applications(options.fast), hub(), cv()):
        for name, make in source:
            if options.only.lower() not in name.lower():
                continue
            try:
                keras.backend.clear_session()
                flat = make()
            except Exception as error:  # report it and continue with the next network
                rows.append((name, "-", "-", "-", f"not built: {error!s:.150}"))
                failures += 1
                continue
            head = head_of(name, flat)
            cases = [(name, flat, head)]
            if head is None and name not in ("CLIP", "SAM"):
                outer = nest(flat)
                inner = {id(w) for w in flat.weights}
                cases.append(
                    (f"{name}, nested", outer, [w for w in outer.weights if id(w) not in inner])
                )
            for case, model, head in cases:
                start = time.perf_counter()
                blocks = find_blocks(model)
                seconds = time.perf_counter() - start
                found = problems(name, model, blocks, head, options.exact)
                failures += bool(found)
                cuts = sum(b.cut is not None for b in blocks)
                rows.append((case, len(blocks), cuts, f"{seconds:.3f}", "; ".join(found) or "ok"))
                if options.blocks:
                    print(f"\n{case}\n{blocks!r}")
                print(".", end="", flush=True, file=sys.stderr)
    header = ("network", "blocks", "cuts", "seconds", "checks")
    print(text_table(rows, header))
    print(
        f"{len(rows)} cases, {failures} failures; slowest find_blocks "
        f"{max((float(r[3]) for r in rows if r[3] != '-'), default=0):.2f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Untrained networks of KerasHub, each as small as its class allows, as presets in a folder."""

import io
import json
from pathlib import Path

import keras
import numpy as np

from tlkeras.tasks.contents import Contents

SIDE = 32
TO_ONE = {"scale": 1 / 127.5, "offset": -1.0}


def images(count=2, size=SIDE):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype("float32")


def medmnist(task, side, count):
    """A data set of MedMNIST as TFDS's mock data are: noise, and every class equally often."""
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), "uint8")
    labels = np.arange(count, dtype="int32") % len(task.classes)
    splits = {split: {"image": noise, "label": labels} for split in task.counts}
    return Contents(splits, tuple(task.classes), task.card(), ())


def resnet(hub):
    network = hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block",
    )  # fmt: skip
    return network, hub.layers.ResNetImageConverter(**TO_ONE)


def efficientnet(hub):
    network = hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3], stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[8, 8], stackwise_output_filters=[8, 8],
        stackwise_expansion_ratios=[1, 2], stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2], stackwise_block_types=["v1", "v1"],
        stackwise_force_input_filters=[0, 0], stackwise_nores_option=[False, False],
        width_coefficient=1.0, depth_coefficient=1.0,
    )  # fmt: skip
    return network, hub.layers.EfficientNetImageConverter(**TO_ONE)


def vit(hub):
    network = hub.models.ViTBackbone((SIDE, SIDE, 3), 8, 2, 2, 16, 16)
    return network, hub.layers.ViTImageConverter(image_size=(SIDE, SIDE), **TO_ONE)


def dinov2(hub):
    network = hub.models.DINOV2Backbone(8, 2, 16, 2, 16, image_shape=(SIDE, SIDE, 3))
    return network, hub.layers.DINOV2ImageConverter(image_size=(SIDE, SIDE), **TO_ONE)


def dinov3(hub):
    network = hub.models.DINOV3Backbone(8, 2, 16, 2, 16, image_shape=(SIDE, SIDE, 3))
    return network, hub.layers.DINOV3ImageConverter(image_size=(SIDE, SIDE), **TO_ONE)


def clip(hub):
    vision = hub.models.CLIPVisionEncoder(8, 16, 2, 2, 16, image_shape=(SIDE, SIDE, 3))
    text = hub.models.CLIPTextEncoder(20, 16, 16, 2, 2, 16, max_sequence_length=8)
    network = hub.models.CLIPBackbone(vision, text, projection_dim=6)
    return network, hub.layers.CLIPImageConverter(image_size=(SIDE, SIDE), **TO_ONE)


def siglip(hub):
    vision = hub.models.SigLIPVisionEncoder(8, 16, 2, 2, 16, image_shape=(SIDE, SIDE, 3))
    text = hub.models.SigLIPTextEncoder(20, 16, 16, 2, 2, 16, max_sequence_length=8)
    network = hub.models.SigLIPBackbone(vision, text)
    return network, hub.layers.SigLIPImageConverter(image_size=(SIDE, SIDE), **TO_ONE)


def sam(hub):
    encoder = hub.models.ViTDetBackbone(
        hidden_size=16, num_layers=2, intermediate_dim=32, num_heads=2, patch_size=16,
        global_attention_layer_indices=[1], num_output_channels=8, window_size=2,
        image_shape=(2 * SIDE, 2 * SIDE, 3),
    )  # fmt: skip
    prompts = hub.layers.SAMPromptEncoder(
        hidden_size=8, image_embedding_size=(4, 4), input_image_size=(2 * SIDE, 2 * SIDE),
        mask_in_channels=16,
    )  # fmt: skip
    masks = hub.layers.SAMMaskDecoder(
        num_layers=1, hidden_size=8, intermediate_dim=16, num_heads=2, embedding_dim=8,
        num_multimask_outputs=3, iou_head_depth=2, iou_head_hidden_dim=8,
    )  # fmt: skip
    network = hub.models.SAMBackbone(encoder, prompts, masks)
    return network, hub.layers.SAMImageConverter(image_size=(2 * SIDE, 2 * SIDE), **TO_ONE)


def pali_gemma(hub):
    network = hub.models.PaliGemmaBackbone(
        vocabulary_size=20, image_size=SIDE, num_layers=1, num_query_heads=2,
        num_key_value_heads=1, hidden_dim=16, intermediate_dim=16, head_dim=8, vit_patch_size=8,
        vit_num_heads=2, vit_hidden_dim=16, vit_num_layers=1, vit_intermediate_dim=16,
    )  # fmt: skip
    return network, hub.layers.PaliGemmaImageConverter(image_size=(SIDE, SIDE), **TO_ONE)


def bert(hub):
    return hub.models.BertBackbone(20, 2, 2, 16, 16, max_sequence_length=8), None


def stored(make, folder: Path):
    """The network, and the preset folder it was saved to with what prepares its inputs."""
    import keras_hub

    keras.utils.set_random_seed(0)
    network, converter = make(keras_hub)
    network.save_to_preset(str(folder))
    if converter is not None:
        converter.save_to_preset(str(folder))
    if make is bert:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "and", "dog"]
        keras_hub.models.BertTokenizer(words).save_to_preset(str(folder))
    if make is clip:
        words = ["!", "a", "t", "at", "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: number for number, word in enumerate(words)}
        keras_hub.models.CLIPTokenizer(vocabulary, merges=["a t"]).save_to_preset(str(folder))
    return network, folder


def pieces(**special):
    """A SentencePiece model of a few words. special: names of its control pieces."""
    import sentencepiece

    words = ["a mole or a melanoma", "what does this picture show", "a chest x-ray of pneumonia"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=(made := io.BytesIO()), model_type="BPE",
        vocab_size=80, hard_vocab_limit=False, minloglevel=2, pad_id=0, bos_id=1, eos_id=2,
        unk_id=3, **special,
    )  # fmt: skip
    return made.getvalue()


IN_ANGLES = {f"{name}_piece": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
IMAGE_TOKENS = ["<start_of_image>", "<end_of_image>", "<img>", "<start_of_turn>", "<end_of_turn>"]


def medgemma(folder: Path):
    """Gemma 3 for pictures and words, whole."""
    import keras_hub as hub

    tokenizer = hub.models.Gemma3Tokenizer(pieces(user_defined_symbols=IMAGE_TOKENS, **IN_ANGLES))
    backbone = hub.models.Gemma3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(), image_size=SIDE, num_layers=1,
        num_query_heads=2, num_key_value_heads=1, hidden_dim=8, intermediate_dim=8, head_dim=4,
        vision_encoder=hub.models.Gemma3VisionEncoder(SIDE, 8, 2, 8, 1, 8, 8, pool_size=2),
    )  # fmt: skip
    converter = hub.layers.Gemma3ImageConverter(image_size=(SIDE, SIDE), **TO_ONE)
    prepare = hub.models.Gemma3CausalLMPreprocessor(
        tokenizer, converter, sequence_length=64, max_images_per_prompt=1,
        num_vision_tokens_per_image=4,
    )  # fmt: skip
    hub.models.Gemma3CausalLM(prepare, backbone).save_to_preset(str(folder))


def paligemma(folder: Path):
    """PaliGemma, whole."""
    import keras_hub as hub

    tokenizer = hub.models.PaliGemmaTokenizer(pieces(**IN_ANGLES))
    network, converter = pali_gemma(hub)
    config = {**network.get_config(), "vocabulary_size": tokenizer.vocabulary_size()}
    prepare = hub.models.PaliGemmaCausalLMPreprocessor(tokenizer, converter, sequence_length=32)
    network = hub.models.PaliGemmaBackbone.from_config(config)
    hub.models.PaliGemmaCausalLM(prepare, network).save_to_preset(str(folder))


def medsiglip(folder: Path):
    """SigLIP's two towers, and what prepares pictures and words."""
    import keras_hub as hub

    tokenizer = hub.models.SigLIPTokenizer(pieces(eos_piece="</s>"))
    vision = hub.models.SigLIPVisionEncoder(8, 16, 2, 2, 16, image_shape=(SIDE, SIDE, 3))
    size = tokenizer.vocabulary_size()
    text = hub.models.SigLIPTextEncoder(size, 16, 16, 2, 2, 16, max_sequence_length=8)
    converter = hub.layers.SigLIPImageConverter(image_size=(SIDE, SIDE), **TO_ONE)
    hub.models.SigLIPBackbone(vision, text).save_to_preset(str(folder))
    hub.models.SigLIPPreprocessor(tokenizer, converter, 8).save_to_preset(str(folder))


def clip_reader(folder: Path):
    """CLIP's two towers, and what prepares pictures and words."""
    import keras_hub as hub

    network, converter = clip(hub)
    words = ["!", "a", "o", "t", "at", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = hub.models.CLIPTokenizer(vocabulary, merges=["a t"])
    network.save_to_preset(str(folder))
    hub.models.CLIPPreprocessor(tokenizer, converter, 8).save_to_preset(str(folder))


def biobert(folder: Path):
    """BERT as it lies in a repository of Hugging Face: for KerasHub's converter."""
    from safetensors.numpy import save_file

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "mole"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(words),
        "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 4,
        "intermediate_size": 8, "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    random, layer = np.random.default_rng(0), "encoder.layer.0."
    dense = {
        f"{layer}attention.self.query": (4, 4), f"{layer}attention.self.key": (4, 4),
        f"{layer}attention.self.value": (4, 4), f"{layer}attention.output.dense": (4, 4),
        f"{layer}intermediate.dense": (8, 4), f"{layer}output.dense": (4, 8),
        "pooler.dense": (4, 4), "embeddings.LayerNorm": (4,),
        f"{layer}attention.output.LayerNorm": (4,),
        f"{layer}output.LayerNorm": (4,),
    }  # fmt: skip
    shapes = {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    for name, rows in {"word": len(words), "position": 512, "token_type": 2}.items():
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, 4)
    weights = {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")

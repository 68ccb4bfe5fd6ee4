"""The two profiles of the course: offline, the default, and online, which downloads data."""

import os
from typing import NamedTuple


class Setting(NamedTuple):
    """The data and the network of a chapter.

    Attributes:
        task, source: names for `tlk.load_task`; `source` is "" if the chapter needs none.
        backbone: a name for `tlk.load_backbone`.
        image_size: pixels per side.
        labels_per_class: number of labelled training images of each class.
    """

    task: str
    source: str
    backbone: str
    image_size: int
    labels_per_class: int


# One line per chapter.
OFFLINE = {
    "00": Setting("clothes", "", "efficientnet_lite0", 64, 30),
    "01": Setting("lesions", "", "efficientnet_lite0", 64, 5),
    "02": Setting("lesions", "", "efficientnet_lite0", 64, 30),
    "03": Setting("lesions", "clothes", "efficientnet_lite0", 64, 5),
    "04": Setting("clothes", "", "efficientnet_lite0", 64, 5),
    "05": Setting("clothes", "", "efficientnet_lite0", 64, 30),
    "06": Setting("clothes", "", "efficientnet_lite0", 64, 20),
    "07": Setting("clothes", "", "efficientnet_lite0", 64, 20),
    "08_01": Setting("lesions", "", "efficientnet_lite0", 96, 30),
    "08_02": Setting("lesions", "", "efficientnet_lite0", 64, 40),
    "08_03": Setting("lesions", "", "efficientnet_lite0", 96, 30),
    "08_04": Setting("digits", "glyphs/digits", "glyph_resnet", 32, 30),
    "08_05": Setting("digits", "glyphs", "glyph_resnet_small", 32, 30),
    "08_06": Setting("clothes", "", "efficientnet_lite0", 64, 30),
    "08_07": Setting("lesions", "", "efficientnet_lite0", 64, 30),
    "08_08": Setting("lesions", "", "efficientnet_lite0", 32, 10),
    "08_09": Setting("scenes", "", "scene_clip", 64, 16),
    "08_10": Setting("lesions", "", "efficientnet_lite0", 96, 30),
    "08_11": Setting("lesions", "", "efficientnet_lite0", 64, 30),
    "09": Setting("clothes", "", "efficientnet_lite0", 64, 10),
    "10_1": Setting("digits", "", "glyph_vit", 32, 30),
    "10_2": Setting("digits", "", "glyph_resnet_small", 32, 30),
    "10_3": Setting("lesions", "", "efficientnet_lite0", 64, 10),
    "10_4": Setting("digits", "", "glyph_resnet_small", 32, 30),
    "11": Setting("digits", "", "glyph_resnet", 32, 5),
}
ONLINE = {
    "00": Setting("cats_vs_dogs", "", "EfficientNetB0", 96, 30),
    "01": Setting("dermamnist", "", "EfficientNetB0", 64, 5),
    "02": Setting("dermamnist", "", "EfficientNetB0", 64, 30),
    "03": Setting("dermamnist", "fashion_mnist", "EfficientNetB0", 64, 5),
    "04": Setting("eurosat", "", "EfficientNetB0", 64, 5),
    "05": Setting("cats_vs_dogs", "", "EfficientNetB0", 64, 30),
    "06": Setting("cats_vs_dogs", "", "EfficientNetB0", 64, 20),
    "07": Setting("eurosat", "", "EfficientNetB0", 64, 20),
    "08_01": Setting("dermamnist", "", "EfficientNetB0", 96, 30),
    "08_02": Setting("pneumoniamnist", "", "ResNet50V2", 64, 40),
    "08_03": Setting("dermamnist", "", "EfficientNetB0", 96, 30),
    "08_04": Setting("dermamnist", "lesions", "EfficientNetB0", 64, 30),
    "08_05": Setting("eurosat", "fashion_mnist", "EfficientNetB0", 64, 20),
    "08_06": Setting("dermamnist", "", "EfficientNetB0", 64, 30),
    "08_07": Setting("lesions", "", "EfficientNetB0", 64, 30),  # no open data set here has masks
    "08_08": Setting("dermamnist", "", "EfficientNetB0", 32, 10),
    "08_09": Setting("scenes", "", "clip_vit_base_patch32", 224, 16),
    "08_10": Setting("lesions", "", "EfficientNetB0", 96, 30),
    "08_11": Setting("dermamnist", "", "EfficientNetB0", 64, 30),
    "09": Setting("cats_vs_dogs", "", "efficientnet_lite0", 64, 10),
    "10_1": Setting("dermamnist", "", "vit_base_patch16_224_imagenet", 224, 30),
    "10_2": Setting("eurosat", "", "EfficientNetB0", 64, 20),
    "10_3": Setting("lesions", "", "EfficientNetB0", 64, 10),
    "10_4": Setting("eurosat", "", "EfficientNetB0", 64, 20),
    "11": Setting("eurosat", "", "EfficientNetB0", 64, 5),
}


def is_online(profile: str | None = None) -> bool:
    """True if downloads are allowed: set by `profile`, else by TLKERAS_PROFILE; False by default.

    Raises:
        ValueError: the profile is neither "offline" nor "online".

    >>> tlk.is_online("online"), tlk.is_online("offline")
    (True, False)
    """
    chosen = profile or os.environ.get("TLKERAS_PROFILE") or "offline"
    if chosen not in ("offline", "online"):
        raise ValueError(f"The profile must be 'offline' or 'online', not {chosen!r}.")
    return chosen == "online"


def setting(chapter: str, profile: str | None = None) -> Setting:
    """Return the task, network, image size and number of labels of a chapter in this profile.

    Args:
        chapter: its number as text, such as "06".
        profile: "offline" or "online". None: as `tlk.is_online` says.

    Raises:
        ValueError: there is no setting for this chapter.

    >>> tlk.setting("00", "offline").backbone
    'efficientnet_lite0'
    """
    settings = ONLINE if is_online(profile) else OFFLINE
    if chapter not in settings:
        raise ValueError(f"No settings for chapter {chapter!r}; there are {list(settings)}.")
    return settings[chapter]

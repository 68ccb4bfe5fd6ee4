"""Networks as people have them: trained in two stages, saved, loaded elsewhere, trained on.

Every plan and BatchNorm mode, and larger networks: `python benchmarks/save_load.py`.
"""

import keras
import networks
import pytest

import tlkeras as tlk

LARGE = ["MobileNetV1", "MobileNetV2", "MobileNetV3Small", "DenseNet121"]
SAID = {"glyph_vit", "scene_clip", *networks.HUB}  # Keras does not store all that is frozen


@pytest.mark.filterwarnings("ignore")
def test_what_was_frozen_stays_after_a_file_or_is_said_and_put_back(tmp_path):
    makes = {**networks.BUNDLED, **networks.HUB}
    if keras.backend.backend() == "tensorflow":  # elsewhere minutes
        makes |= {name: networks.APPLICATIONS[name] for name in LARGE}
    else:
        del makes["efficientnet_lite0"]
    plan = tlk.recipes.two_stage(head_epochs=1, tune_epochs=1)
    for name, make in makes.items():
        compiled = name.startswith(("glyph", "scene"))  # with the cache, too
        networks.trained_and_saved(make, plan, tmp_path / name, eager=not compiled)
    expected = {name: "said" if name in SAID else "exact" for name in makes}
    assert networks.reloaded(tmp_path) == expected  # with Keras alone
    assert networks.reloaded(tmp_path, "plan") == expected

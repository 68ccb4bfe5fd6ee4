"""What a frozen part put out is found again by later runs, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

from tlkeras.features import kept
from tlkeras.features.store import FeatureCache
from tlkeras.freezing import policies
from tlkeras.plans.plan import Stage
from tlkeras.training.fit import fit_stages

HEAD = Stage("head", policies.head_only(), learning_rate=1e-2, epochs=2)


def train(cache, classes=3, stage=HEAD, data=None):
    """The weights after a stage, and how many examples went through the frozen part."""
    keras.utils.set_random_seed(0)
    model = with_head(small_backbone(), classes)
    fit_stages(model, [stage], data or easy_data(70), cache=cache, seed=0, verbose=0)
    computed = sum(store.computed for store in getattr(cache, "_stores", {}).values())
    return model.get_weights(), computed


def the_file(folder):
    (path,) = Path(folder).glob("*.features")
    return path


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_later_run_computes_nothing_and_gives_the_same_weights(tmp_path):
    first, computed = train(FeatureCache(folder=tmp_path))
    assert computed == 70
    again, computed = train(FeatureCache(folder=tmp_path))
    assert computed == 0 and equal(first, again)
    assert equal(first, train(FeatureCache())[0])
    assert train(FeatureCache(folder=tmp_path), classes=5)[1] == 0  # another head
    assert train(FeatureCache(folder=tmp_path), data=easy_data(90))[1] == 20  # more examples


CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from features.test_kept import FeatureCache, train
print(train(FeatureCache(folder=sys.argv[2]))[1])
"""


def test_another_process_finds_them(tmp_path):
    train(FeatureCache(folder=tmp_path))
    here = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CODE, here, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.split()[-1:] == ["0"], done.stderr


def test_other_weights_are_another_part(tmp_path):
    train(FeatureCache(folder=tmp_path))
    keras.utils.set_random_seed(1)
    model, cache = with_head(small_backbone(), 3), FeatureCache(folder=tmp_path)
    fit_stages(model, [HEAD], easy_data(70), cache=cache, verbose=0)
    assert len(list(tmp_path.glob("*.features"))) == 2


@pytest.mark.parametrize(
    "layer", [keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(3, lambda x: x)]
)
def test_what_has_code_of_the_users_is_not_kept(tmp_path, layer):
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(small_backbone()(layer(image)))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    run = fit_stages(
        model, [HEAD], easy_data(), cache=FeatureCache(folder=tmp_path), seed=0, verbose=0
    )
    assert run.stages[0].cache.startswith("after") and not list(tmp_path.glob("*.features"))


def test_augmented_views_are_not_kept(tmp_path):
    stage = HEAD.replace(augment=keras.layers.RandomFlip(seed=0), views=2)
    train(FeatureCache(folder=tmp_path), stage=stage)
    assert not list(tmp_path.glob("*.features"))


def test_a_damaged_record_is_computed_again(tmp_path):
    first, _ = train(FeatureCache(folder=tmp_path))
    content = bytearray(the_file(tmp_path).read_bytes())
    content[-1] ^= 1
    the_file(tmp_path).write_bytes(content)
    again, computed = train(FeatureCache(folder=tmp_path))
    assert computed == 1 and equal(first, again)
    assert train(FeatureCache(folder=tmp_path))[1] == 0  # it was kept anew


def test_what_a_killed_process_left_half_written_is_cut_off(tmp_path):
    first, _ = train(FeatureCache(folder=tmp_path))
    whole = the_file(tmp_path).stat().st_size
    with open(the_file(tmp_path), "ab") as file:
        file.write(b"half")
    assert train(FeatureCache(folder=tmp_path))[1] == 0
    more, computed = train(FeatureCache(folder=tmp_path), data=easy_data(90))
    assert computed == 20 and the_file(tmp_path).stat().st_size == whole * 90 // 70
    again, computed = train(FeatureCache(folder=tmp_path))
    assert computed == 0 and equal(first, again)


def test_the_longest_unused_go_when_the_folder_is_full(tmp_path, monkeypatch):
    train(FeatureCache(folder=tmp_path))
    old = the_file(tmp_path)
    monkeypatch.setattr(kept.FeatureFile.__init__, "__defaults__", (old.stat().st_size * 3 // 2,))
    keras.utils.set_random_seed(1)
    cache = FeatureCache(folder=tmp_path)
    fit_stages(with_head(small_backbone(), 3), [HEAD], easy_data(70), cache=cache, verbose=0)
    assert the_file(tmp_path) != old
    assert train(FeatureCache(folder=tmp_path), data=easy_data(200))[1] == 200  # too large
    assert the_file(tmp_path) != old


def test_a_folder_that_cannot_be_written_costs_nothing_but_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        weights, _ = train(FeatureCache(folder=tmp_path / "file"))
    assert equal(weights, train(FeatureCache())[0])

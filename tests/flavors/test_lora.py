"""Adapters learn, the base stands still to the bit; files of them are put in, changed and left."""

import zipfile

import keras
import keras_hub
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.blocks import internals
from tlkeras.flavors import lora

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def vit():
    return keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8
    )


def depthwise():
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, 2, name="stem_conv")(image)
    x = keras.layers.DepthwiseConv2D(3, 2, name="middle_conv")(x)
    return keras.Model(image, keras.layers.Conv2D(8, 1, name="top_conv")(x), name="backbone")


def built(make=small_backbone, nested=True, classes=3, seed=0):
    keras.utils.set_random_seed(seed)
    backbone = make()
    if make is vit:
        return tlk.add_head(backbone, classes, dropout=0.0)
    return with_head(backbone, classes, nested)


NETWORKS = {
    "convolutions, nested": built,
    "convolutions, flat": lambda **more: built(nested=False, **more),
    "attention": lambda **more: built(vit, **more),
    "depthwise": lambda **more: built(depthwise, **more),
}
every = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


def values(weights):
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]


def base_weights(model):
    """The backbone's, without factors, in the order of its blocks."""
    blocks = [block for block in tlk.find_blocks(model) if block.role != "head"]
    return [w for block in blocks for w in block.weights if not w.name.startswith("lora_")]


def same(before, after):
    return all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


def train(model, epochs=2, seed=0, rate=0.05):
    x, y = easy_data(seed=seed)
    model.compile(keras.optimizers.Adam(rate), LOSS, run_eagerly=True)
    return model.fit(x, y, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def out(model):
    return keras.ops.convert_to_numpy(model(easy_data()[0][:16], training=False))


@every
def test_the_base_stands_still_and_the_rest_learns(make):
    model = make()
    start, blocks = out(model), tlk.find_blocks(model).names
    table = lora.add(model, rank=2, seed=0)
    assert tlk.find_blocks(model).names == blocks
    np.testing.assert_allclose(out(model), start, atol=1e-6)  # B is 0
    learning = model.trainable_variables
    assert table.trainable_params == sum(np.prod(v.shape) for v in learning)
    assert {v.name for v in learning if "lora" not in v.name} <= {"kernel", "bias"}  # the head's
    before, then = values(base_weights(model)), values(learning)
    losses = train(model)
    assert losses[1] < losses[0] and same(before, values(base_weights(model)))
    assert not any(np.array_equal(a, b) for a, b in zip(then, values(learning), strict=True))


POLICIES = [
    tlk.policies.head_only(),
    tlk.policies.last_blocks(1),
    tlk.policies.all_blocks(),
    tlk.policies.named("stem"),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_policy_opens_adapters_and_no_base(policy):
    model = built()
    lora.add(model, rank=2)
    chosen = {block.name for block in policy(tlk.find_blocks(model))}
    tlk.freeze(model, tlk.policies.all_blocks(), batchnorm="train")
    table = tlk.freeze(model, policy, batchnorm="train")
    assert set(table.blocks) == chosen
    learning = [v for v in model.trainable_variables if not v.path.startswith("logits")]
    assert all(v.name.startswith("lora_") for v in learning)
    assert len(learning) == 2 * len(chosen - {"head"})


@pytest.mark.filterwarnings("ignore:Keras does not save")
@pytest.mark.parametrize("cache", [False, "auto"])
def test_stages_train_adapters_and_leave_the_base(cache):
    model = built()
    lora.add(model, rank=2, seed=0)
    before = values(base_weights(model))
    plan = tlk.recipes.two_stage(2, 2, tune_lr=1e-2, blocks=2, batchnorm="train")
    run = tlk.fit_stages(model, plan, easy_data(), verbose=0, seed=0, cache=cache)
    assert run.stages[0].learns.blocks == ["head"]
    assert same(before, values(base_weights(model)))
    factors = [v for v in model.variables if v.name == "lora_kernel_b"]
    moved = {v.path.split("/")[-2]: bool(np.abs(v).max()) for v in factors}
    assert moved == {"stack0_conv": False, "stack1_conv": True, "stack2_conv": True}


def test_a_backbone_closed_before_and_a_head_closed_by_hand():
    model = built()
    model.get_layer("backbone").trainable = False
    table = lora.add(model, rank=2)
    assert table.blocks == tlk.find_blocks(model).names
    model = built()
    model.get_layer("logits").trainable = False
    lora.add(model, rank=2)
    assert all(v.name.startswith("lora_") for v in model.trainable_variables)


def test_where_by_block_by_policy_and_by_layer():
    def given(where):
        model = built(depthwise)
        lora.add(model, rank=2, where=where)
        layers = internals.all_layers(model)
        return sorted(x.name for x in layers if getattr(x, "lora_enabled", False))

    assert given(None) == ["stem_conv", "top_conv"]
    assert given("stem") == ["stem_conv"]
    assert given(tlk.policies.last_blocks(1)) == ["top_conv"]
    assert given(lambda layer: layer.name.startswith("top")) == ["top_conv"]


def test_embeddings_are_left_out_unless_asked_for():
    def network():
        tokens = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(9, 8)(tokens)
        x = keras.layers.Dense(8)(x)
        backbone = keras.Model(tokens, keras.layers.Dense(8)(x))
        return keras.Sequential([backbone, keras.layers.Flatten(), keras.layers.Dense(2)])

    def is_table(layer):
        return isinstance(layer, keras.layers.Embedding)

    plain, asked = network(), network()
    lora.add(plain, rank=2)
    lora.add(asked, rank=2, where=is_table)
    names = [sorted(v.name for v in m.variables if "lora" in v.name) for m in (plain, asked)]
    assert names == [
        ["lora_kernel_a", "lora_kernel_a", "lora_kernel_b", "lora_kernel_b"],
        ["lora_embeddings_a", "lora_embeddings_b"],
    ]
    tokens = np.arange(8).reshape(2, 4)
    asked(tokens)
    [b] = [v for v in asked.variables if v.name == "lora_embeddings_b"]
    b.assign(np.ones(b.shape))
    before = asked.predict(tokens, verbose=0)
    lora.merge(asked)
    np.testing.assert_allclose(asked.predict(tokens, verbose=0), before, atol=1e-5)
    lora.add(asked, rank=2)  # what predict had compiled is not used again
    factors = [v for v in asked.variables if v.name == "lora_kernel_b"]
    factors[0].assign(np.ones(factors[0].shape))
    assert not np.allclose(asked.predict(tokens, verbose=0), before, atol=1e-2)


def test_no_layer_is_an_error_that_names_what_there_is():
    with pytest.raises(ValueError, match=r"DepthwiseConv2D \(cannot\)"):
        lora.add(built(depthwise), where=lambda layer: "middle" in layer.name)
    with pytest.raises(ValueError, match="blocks are: stem"):
        lora.add(built(), where="block9")
    with pytest.raises(ValueError, match="no layers"):
        lora.add(built(), where=tlk.policies.head_only())
    with pytest.raises(ValueError, match="rank=0"):
        lora.add(built(), rank=0)
    model = built()
    model.get_layer("backbone").get_layer("stack0_conv").enable_lora(2)
    with pytest.raises(ValueError, match="without adapters"):
        lora.add(model)
    with pytest.raises(ValueError, match="lora.add"):
        lora.merge(built())


@every
def test_a_file_of_adapters_makes_the_model_again_and_it_learns_on(make, tmp_path):
    model = make()
    lora.add(model, rank=2, alpha=6, seed=0)
    train(model)
    path = lora.save(model, tmp_path / "a.npz")
    again = make()
    before = values(base_weights(again))
    lora.load(again, path)
    np.testing.assert_array_equal(out(again), out(model))
    assert [v.name for v in again.trainable_variables] == [
        v.name for v in model.trainable_variables
    ]
    goes_on, went_on = train(again, 1), train(model, 1)
    np.testing.assert_allclose(goes_on, went_on, rtol=1e-4)
    assert same(before, values(base_weights(again)))
    assert path.stat().st_size < 6000 + 8 * model.count_params()


def test_files_are_changed_for_one_another(tmp_path):
    outs = {}
    for name, rank, where in (("a", 2, None), ("b", 3, "stack*"), ("c", 2, None)):
        model = built()
        lora.add(model, rank=rank, where=where, seed=1)
        if name == "b":  # the bias of a layer learns, too
            bias = model.get_layer("backbone").get_layer("stack1_conv").bias
            bias.trainable = True
        train(model, seed=len(outs))
        assert name != "b" or np.abs(bias).max() > 0
        lora.save(model, tmp_path / name)
        outs[name] = out(model)
    assert not np.allclose(outs["a"], outs["c"], atol=1e-2)
    model = built()
    for name in "abcabac":
        lora.load(model, tmp_path / name)
        np.testing.assert_array_equal(out(model), outs[name], err_msg=name)
    pristine = built()
    lora.remove(model)
    assert same(values(base_weights(pristine)), values(base_weights(model)))


@every
def test_merged_it_is_an_ordinary_model_with_the_same_outputs(make, tmp_path):
    model = make()
    count = model.count_params()
    lora.add(model, rank=2, alpha=5)
    train(model)
    before = out(model)
    lora.merge(model)
    np.testing.assert_allclose(out(model), before, atol=1e-5, rtol=1e-5)
    assert model.count_params() == count
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(out(loaded), before, atol=1e-5, rtol=1e-5)
    assert not any(getattr(x, "lora_enabled", False) for x in internals.all_layers(loaded))
    assert "lora" not in loaded.to_json()
    assert tlk.freeze(model, tlk.policies.all_blocks()).blocks == tlk.find_blocks(model).names
    losses = train(model, rate=1e-3)
    assert losses[1] < losses[0]


@every
def test_taken_out_the_base_is_what_it_was(make):
    model, bare = make(), make()
    lora.add(model, rank=2)
    train(model)
    lora.remove(model)
    assert same(values(base_weights(bare)), values(base_weights(model)))
    below = [keras.Model(m.input, m.layers[-2].output) for m in (model, bare)]
    np.testing.assert_array_equal(out(below[0]), out(below[1]))
    assert {v.path for v in model.trainable_variables} == {
        v.path for v in model.layers[-1].trainable_variables
    }
    lora.add(model, rank=3)
    assert train(model)


def test_what_the_user_closed_stays_closed_when_adapters_are_gone():
    model = built()
    conv = model.get_layer("backbone").get_layer("stack1_conv")
    conv.trainable = False
    lora.add(model, rank=2)
    lora.remove(model)
    tlk.freeze(model, tlk.policies.all_blocks())
    assert not conv.kernel.trainable and not conv.bias.trainable
    assert model.get_layer("backbone").get_layer("stack2_conv").kernel.trainable


def test_a_base_that_was_opened_is_noticed(tmp_path):
    model = built()
    lora.add(model, rank=2)
    tlk.freeze(model, tlk.policies.all_blocks(), reopen=True)
    train(model)
    for refused in (lambda: lora.save(model, tmp_path / "a"), lambda: lora.remove(model)):
        with pytest.raises(ValueError, match="kernel changed"):
            refused()
    before = out(model)
    lora.merge(model)
    np.testing.assert_allclose(out(model), before, atol=1e-5)


@pytest.fixture
def saved(tmp_path):
    model = built()
    lora.add(model, rank=2)
    train(model)
    return lora.save(model, tmp_path / "a.npz")


def test_another_base_or_head_is_refused_and_nothing_is_touched(saved):
    other = built(seed=1)
    with pytest.raises(ValueError, match="other weights"):
        lora.load(other, saved)
    assert not any("lora" in v.name for v in other.variables)
    with pytest.raises(ValueError, match=r"head of \[\[8, 3\], \[3\]\]"):
        lora.load(built(classes=4), saved)


def rewritten(path, change):
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    how = change(members) or zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)


def cut_short(members):
    members["0/a.npy"] = members["0/a.npy"][:-8]


def not_numbers(members):
    members["0/a.npy"] = members["0/a.npy"][:-4] + np.float32(np.nan).tobytes()


def missing(members):
    del members["head/0.npy"]


def pickled(members):
    members["0/a.npy"] = b"\x80\x04]\x94."


def packed(members):
    return zipfile.ZIP_DEFLATED


def of_another_rank(members):
    members["record.json"] = members["record.json"].replace(b'"rank": 2', b'"rank": 2000000000')


def of_no_alpha(members):
    members["record.json"] = members["record.json"].replace(b'"alpha": 2', b'"alpha": NaN')


def of_another_layer(members):
    members["record.json"] = members["record.json"].replace(b'"layer": 0', b'"layer": 1')


def of_another_kind(members):
    members["record.json"] = b"[" * 100_000


@pytest.mark.parametrize(
    "damage",
    [
        cut_short, not_numbers, missing, pickled, packed, of_another_rank, of_no_alpha,
        of_another_layer, of_another_kind,
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_nothing_is_touched(saved, damage):
    rewritten(saved, damage)
    model = built()
    with pytest.raises(ValueError, match="damaged"):
        lora.load(model, saved)
    assert not any("lora" in v.name for v in model.variables)


def test_what_is_no_file_of_adapters_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    for path in (saved, tmp_path / "b.npz", tmp_path / "none"):
        with pytest.raises(ValueError, match="Expected a file|cannot be read"):
            lora.load(built(), path)


def test_numpy_reads_the_file_without_pickle(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert file["0/a"].shape == (3, 3, 3, 2) and file["head/1"].shape == (3,)


@pytest.mark.filterwarnings("ignore:Keras does not save")
def test_a_backup_goes_on_with_adapters(tmp_path):
    def trained(epochs, folder):
        model = built()
        lora.add(model, rank=2, seed=0)
        plan, folder = tlk.recipes.full(epochs, 1e-2), str(tmp_path / folder)
        tlk.fit_stages(model, plan, easy_data(), verbose=0, seed=0, backup_dir=folder)
        return out(model)

    first = trained(1, "in two")
    np.testing.assert_array_equal(trained(2, "in two"), trained(2, "at once"))
    assert not np.allclose(first, out(built()), atol=1e-4)


def test_mixed_precision_and_seeds():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, twin = built(), built()
    finally:
        keras.config.set_dtype_policy("float32")
    for one in (model, twin):
        lora.add(one, rank=2, seed=3)
    assert same(values(model.trainable_variables), values(twin.trainable_variables))
    train(model)
    before = out(model)
    lora.merge(model)
    np.testing.assert_allclose(out(model), before, atol=2e-2)

"""What the user closed stays closed under every policy, and a whole backbone is the plan's."""

import keras
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.freezing.flags import freeze
from tlkeras.freezing.policies import all_blocks, head_only, last_blocks
from tlkeras.training.rate_finder import as_found


def learns(model, *names):
    """Whether the first weight of each of these layers of the backbone is trained."""
    learning = {id(weight) for weight in model.trainable_weights}
    backbone = next((x for x in model.layers if isinstance(x, keras.Model)), model)
    return [id(backbone.get_layer(name).weights[0]) in learning for name in names]


def dense_backbone(**options):
    vector = keras.Input((4,), name="vector")
    x = keras.layers.Dense(6, name="dense0")(vector)
    x = keras.layers.Dense(6, name="dense1", **options)(x)
    return keras.Model(vector, keras.layers.Dense(6, name="dense2")(x), name="backbone")


def test_the_bases_of_lora_stay_closed_whenever_it_was_enabled():
    model = tlk.add_head(dense_backbone(), 2)
    dense = model.get_layer("backbone").get_layer("dense1")
    freeze(model, head_only())  # closes the kernel before LoRA does
    dense.enable_lora(2)
    for policy in (all_blocks(), head_only(), last_blocks(2)):
        table = freeze(model, policy)
        assert not dense._kernel.trainable
    assert dense.lora_kernel_a.trainable and dense.bias.trainable
    assert list(table.kept.values()) == [1] and "1 closed by user" in repr(table)
    freeze(model, all_blocks(), reopen=True)
    assert dense._kernel.trainable
    freeze(model, head_only())
    freeze(model, all_blocks())
    assert dense._kernel.trainable  # from then on


def test_a_layer_made_closed_stays_closed_in_every_stage():
    model = tlk.add_head(dense_backbone(trainable=False), 2)
    for policy in (head_only(), all_blocks(), last_blocks(2), all_blocks()):
        freeze(model, policy)
        assert learns(model, "dense1") == [False]
    assert learns(model, "dense0", "dense2") == [True, True]


@pytest.mark.parametrize("nested", [True, False])
def test_a_layer_or_a_variable_closed_by_hand_stays_closed_and_held(nested):
    backbone = small_backbone()
    model = with_head(backbone, nested=nested)
    backbone.get_layer("stack1_conv").trainable = False
    backbone.get_layer("stack2_conv").bias.trainable = False
    for policy in (head_only(), all_blocks()):
        table = freeze(model, policy)
    assert learns(model, "stack0_conv", "stack1_conv", "stack2_conv") == [True, False, True]
    assert not backbone.get_layer("stack2_conv").bias.trainable
    held = {id(weight) for weight in table.held}
    assert {id(w) for w in backbone.get_layer("stack1_conv").weights} <= held
    freeze(model, all_blocks(), reopen=True)
    assert learns(model, "stack0_conv", "stack1_conv", "stack2_conv") == [True, True, True]


def close_as_a_guide_does(backbone):
    backbone.trainable = False


def close_one_by_one(backbone):
    for layer in backbone.layers:
        layer.trainable = False


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("close", [close_as_a_guide_does, close_one_by_one])
def test_a_backbone_closed_as_a_whole_is_the_plans(close, nested):
    backbone = small_backbone()
    model = with_head(backbone, nested=nested)
    for _ in range(2):  # before tlkeras saw the model, and after a stage
        close(backbone)
        table = freeze(model, last_blocks(1))
        assert table.blocks == ["stack2", "head"] and not table.kept
        assert learns(model, "stack1_conv", "stack2_conv") == [False, True]


def test_a_whole_model_that_is_closed_is_opened():
    model = with_head(small_backbone())
    model.trainable = False
    assert freeze(model, all_blocks()).blocks == ["stem", "stack1", "stack2", "head"]


def test_batchnorm_closed_in_all_of_the_backbone_is_a_mode_and_in_one_layer_a_wish():
    backbone = small_backbone()
    model = with_head(backbone)
    for i in range(3):
        backbone.get_layer(f"stack{i}_bn").trainable = False
    freeze(model, all_blocks(), batchnorm="train")
    assert learns(model, "stack0_bn", "stack2_bn") == [True, True]
    backbone.get_layer("stack0_bn").trainable = False
    table = freeze(model, all_blocks(), batchnorm="train")
    assert learns(model, "stack0_bn", "stack2_bn") == [False, True]
    held = {id(weight) for weight in table.held}
    assert {id(w) for w in backbone.get_layer("stack0_bn").weights} <= held


def test_where_the_user_closed_all_that_would_learn_it_is_an_error():
    model = tlk.add_head(small_backbone(), 3)
    model.get_layer("head").trainable = False
    with pytest.raises(ValueError, match="reopen=True"):
        freeze(model, head_only())


def test_no_mark_is_left_by_a_call_that_puts_flags_back():
    backbone = small_backbone()
    model = with_head(backbone)
    with as_found(model):
        freeze(model, head_only())
    backbone.get_layer("stack1_conv").trainable = False
    freeze(model, all_blocks())
    assert learns(model, "stack1_conv", "stack2_conv") == [False, True]


def test_a_block_frozen_by_its_rate_is_not_closed_for_good():
    model = with_head(small_backbone())
    with pytest.warns(UserWarning, match="rate of 0"):
        tlk.optimizers.discriminative(keras.optimizers.SGD(), model, {"stack1": 0, "*": 1})
    freeze(model, all_blocks())
    assert learns(model, "stack1_conv") == [True]


def test_lora_learns_in_a_staged_run():
    model = tlk.add_head(dense_backbone(), 3)
    dense = model.get_layer("backbone").get_layer("dense1")
    dense.enable_lora(2)
    before = keras.ops.convert_to_numpy(dense._kernel).copy()
    x, y = easy_data()
    plan = [tlk.Stage(p.kind, p, epochs=1) for p in (head_only(), all_blocks())]
    run = tlk.fit_stages(model, plan, (x[:, 0, 0, :1].repeat(4, 1), y), verbose=0, seed=0)
    assert (keras.ops.convert_to_numpy(dense._kernel) == before).all()
    assert abs(keras.ops.convert_to_numpy(dense.lora_kernel_b)).max() > 0
    assert run.stages[-1].learns.kept

import keras
import pytest
from small import small_backbone

from tlkeras.blocks.find import find_blocks
from tlkeras.freezing import policies
from tlkeras.freezing.flags import freeze


def learning_blocks(model):
    """Names of the blocks whose every weight that can learn does, by the model's own account."""
    learning = {id(weight) for weight in model.trainable_weights}
    return [b.name for b in find_blocks(model) if any(id(w) in learning for w in b.weights)]


def test_the_four_options_of_section_1_6_open_the_blocks_they_name(model):
    names = [block.name for block in find_blocks(model)]
    *backbone, head = names
    middle = [block.name for block in find_blocks(model) if block.role == "middle"]
    for policy, expected in (
        (policies.head_only(), [head]),
        (policies.last_blocks(2), [*backbone[-2:], head]),
        (policies.all_blocks(), names),
        (policies.middle_blocks(), [*middle, head]),
    ):
        assert freeze(model, policy).blocks == expected
        assert learning_blocks(model) == expected


def test_named_takes_patterns_and_exactly_those(model):
    freeze(model, policies.named("stack*"))
    assert "head" not in learning_blocks(model)
    assert len(learning_blocks(model)) >= 2


def test_a_function_is_a_policy_too(model):
    freeze(model, lambda blocks: [block for block in blocks if block.role == "top"])
    assert len(learning_blocks(model)) == 1


def test_the_table_counts_what_learns(model):
    table = freeze(model, policies.last_blocks(1), batchnorm="train")
    learning = sum(int(keras.ops.size(weight)) for weight in model.trainable_weights)
    assert table.trainable_params == learning
    assert table.params == model.count_params()
    assert f"{learning:,} of {model.count_params():,}" in repr(table)
    assert "<table" in table._repr_html_()


def test_an_unknown_block_is_an_error_that_lists_the_blocks(model):
    with pytest.raises(ValueError, match=r"No block is called 'stack9'.*head"):
        freeze(model, policies.named("head", "stack9"))


def test_more_blocks_than_there_are_is_an_error(model):
    with pytest.raises(ValueError, match=r"last_blocks\(40\) asks for more blocks"):
        freeze(model, policies.last_blocks(40))


def test_a_backbone_without_a_head_is_told_to_get_one():
    with pytest.raises(ValueError, match="tlk.add_head"):
        freeze(small_backbone(), policies.head_only())


def test_a_policy_that_chooses_nothing_is_an_error(model):
    with pytest.raises(ValueError, match="nothing would learn"):
        freeze(model, lambda blocks: [])


def test_policies_are_data():
    policy = policies.last_blocks(2)
    assert policies.Policy.of(policy.kind, list(policy.arguments)) == policy
    assert str(policy) == "last_blocks(2)"
    with pytest.raises(ValueError, match="found 'first_blocks'"):
        policies.Policy.of("first_blocks")

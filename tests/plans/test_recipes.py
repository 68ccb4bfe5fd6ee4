"""The recipes of section 1.7, with the document's own learning rates."""

import pytest
from small import small_backbone, with_head

from tlkeras.blocks.find import find_blocks
from tlkeras.optimizers.rates import block_rates
from tlkeras.plans import recipes


def speeds(plan, blocks):
    """Learning rates of the blocks that learn, stage by stage."""
    found = []
    for stage in plan.stages:
        names = [block.name for block in stage.policy(blocks)]
        rates = block_rates(stage.rates, blocks, set(names))
        found.append({name: stage.learning_rate * rates[name] for name in names})
    return found


@pytest.fixture
def blocks():
    found = find_blocks(with_head(small_backbone((4, 6, 8, 10))))
    assert [block.role for block in found] == ["bottom", "bottom", "middle", "top", "head"]
    return found


def test_recipe_a_trains_the_head_then_the_last_block_100_times_slower(blocks):
    plan = recipes.recipe_a()
    top, head = [block.name for block in blocks][-2:]
    one, two = speeds(plan, blocks)
    assert one == pytest.approx({head: 1e-3})
    assert two == pytest.approx({top: 1e-5, head: 1e-5})
    assert all(stage.patience and stage.monitor == "val_accuracy" for stage in plan.stages)


def test_recipe_b_has_a_rate_for_head_top_and_lower_blocks(blocks):
    plan = recipes.recipe_b(augment=len)
    *_, low, middle, top, head = [block.name for block in blocks]
    one, two = speeds(plan, blocks)
    assert one == pytest.approx({head: 1e-4})
    assert two == pytest.approx({low: 1e-6, middle: 1e-6, top: 1e-5, head: 1e-4})
    assert [stage.augment for stage in plan.stages] == [len, len]
    with pytest.raises(ValueError, match="2 to 4 blocks, found 5"):
        recipes.recipe_b(blocks=5)


def test_recipe_b_fits_a_backbone_without_middle_blocks():
    blocks = find_blocks(with_head(small_backbone((4, 6))))
    assert "middle" not in {block.role for block in blocks}
    assert list(speeds(recipes.recipe_b(blocks=2), blocks)[1].values()) == pytest.approx(
        [1e-6, 1e-5, 1e-4]
    )


def test_recipe_c_trains_everything_very_slowly(blocks):
    assert speeds(recipes.recipe_c(), blocks) == [
        pytest.approx(dict.fromkeys((b.name for b in blocks), 1e-6))
    ]


def test_scale_multiplies_every_rate(blocks):
    for recipe in (recipes.recipe_a, recipes.recipe_b, recipes.recipe_c):
        for stage, scaled in zip(
            speeds(recipe(), blocks), speeds(recipe(scale=10), blocks), strict=True
        ):
            assert scaled == pytest.approx({name: 10 * rate for name, rate in stage.items()})

"""Ready-made plans: the options and playbooks of section 1.6, and the recipes of section 1.7.

| section 1.6 | what learns | section 1.7 | data |
|---|---|---|---|
| `head_only` | option 1: the head | `recipe_a` | about 10,000 images |
| `two_stage` | playbook A: the head, then the last blocks | `recipe_b` | about 50,000 images |
| `progressive` | playbook B: one more block per stage | `recipe_c` | more, or a far domain |
| `middle_only` | option 4: the middle blocks | | |
| `full` | option 3: every block | | |

Learning rates are for AdamW. The head starts from random weights and learns fast; pretrained
blocks learn 10 to 100 times slower, so that they adapt without forgetting. The default rates of
the five plans on the left suit some hundreds to a few thousand images, where an epoch has few
steps; `tlkeras fit` uses them. Recipes A to C have the rates of the course document, which are
meant for 10,000 images or more.

The accuracies below are test accuracies on `digits`, starting from `glyph_resnet`, which was
pretrained on letters: mean and spread over three draws of 30 labels per class, measured with the
command line (`tools/measure_recipes.py`). Differences smaller than the spread do not count.

>>> tlk.recipes.two_stage(tune_lr=3e-5, patience=3)
stage  what learns     learning rate  epochs  BatchNorm  patience
-----  --------------  -------------  ------  ---------  --------
head   head_only()     0.01               10  frozen            3
tune   last_blocks(1)  3e-05              20  frozen            3
"""

from collections.abc import Callable
from typing import Any

from tlkeras.freezing import policies
from tlkeras.plans.plan import Plan, Stage

# Section 1.6: the options and playbooks ----------------------------------------------------------


def head_only(
    epochs: int = 30,
    head_lr: float = 1e-2,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Option 1, feature extraction: only the head learns.

    This is fast and safe, but limited if the target task is very different.

    `tlkeras fit digits --labels-per-class 30 --recipe head_only`: 98.8 ± 0.2 % on test.

    >>> tlk.recipes.head_only(epochs=5)
    stage  what learns  learning rate  epochs  BatchNorm  patience
    -----  -----------  -------------  ------  ---------  --------
    head   head_only()           0.01       5  frozen
    """
    return Plan([Stage("head", policies.head_only(), head_lr, epochs, batchnorm, patience)])


def two_stage(
    head_epochs: int = 10,
    tune_epochs: int = 20,
    head_lr: float = 1e-2,
    tune_lr: float = 3e-4,
    blocks: int = 1,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Playbook A, the default choice: first the head, then also the last `blocks`, more slowly.

    `tlkeras fit digits --labels-per-class 30 --recipe two_stage`: 98.9 ± 0.4 % on test.

    >>> tlk.recipes.two_stage(blocks=2)
    stage  what learns     learning rate  epochs  BatchNorm  patience
    -----  --------------  -------------  ------  ---------  --------
    head   head_only()     0.01               10  frozen
    tune   last_blocks(2)  0.0003             20  frozen
    """
    return Plan(
        [
            Stage("head", policies.head_only(), head_lr, head_epochs, batchnorm, patience),
            Stage("tune", policies.last_blocks(blocks), tune_lr, tune_epochs, batchnorm, patience),
        ]
    )


def progressive(
    head_epochs: int = 10,
    block_epochs: int = 8,
    head_lr: float = 1e-2,
    block_lr: float = 3e-4,
    blocks: int = 3,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Playbook B, gradual unfreezing: the head, then one more block per stage, from the top down.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", section 3.3.

    `tlkeras fit digits --labels-per-class 30 --recipe progressive`: 98.8 ± 0.2 % on test.

    >>> tlk.recipes.progressive(blocks=2)
    stage   what learns     learning rate  epochs  BatchNorm  patience
    ------  --------------  -------------  ------  ---------  --------
    head    head_only()     0.01               10  frozen
    last 1  last_blocks(1)  0.0003              8  frozen
    last 2  last_blocks(2)  0.0003              8  frozen
    """
    stages = [Stage("head", policies.head_only(), head_lr, head_epochs, batchnorm, patience)]
    for n in range(1, blocks + 1):
        policy = policies.last_blocks(n)
        stages.append(Stage(f"last {n}", policy, block_lr, block_epochs, batchnorm, patience))
    return Plan(stages)


def middle_only(
    head_epochs: int = 10,
    tune_epochs: int = 20,
    head_lr: float = 1e-2,
    tune_lr: float = 3e-4,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Option 4: first the head, then also the middle blocks; bottom and top stay frozen.

    `tlkeras fit digits --labels-per-class 30 --recipe middle_only`: 98.7 ± 0.6 % on test.

    >>> tlk.recipes.middle_only()
    stage   what learns      learning rate  epochs  BatchNorm  patience
    ------  ---------------  -------------  ------  ---------  --------
    head    head_only()      0.01               10  frozen
    middle  middle_blocks()  0.0003             20  frozen
    """
    return Plan(
        [
            Stage("head", policies.head_only(), head_lr, head_epochs, batchnorm, patience),
            Stage("middle", policies.middle_blocks(), tune_lr, tune_epochs, batchnorm, patience),
        ]
    )


def full(
    epochs: int = 30, lr: float = 3e-4, *, batchnorm: str = "frozen", patience: int | None = None
) -> Plan:
    """Option 3, full fine-tuning: every block learns from the first step.

    Also suitable for training from scratch, with batchnorm="train" and a learning rate of about
    1e-3.

    `tlkeras fit digits --labels-per-class 30 --recipe full`: 98.5 ± 0.5 % on test.

    >>> tlk.recipes.full(epochs=20, lr=1e-3, batchnorm="train")
    stage  what learns   learning rate  epochs  BatchNorm  patience
    -----  ------------  -------------  ------  ---------  --------
    full   all_blocks()          0.001      20  train
    """
    return Plan([Stage("full", policies.all_blocks(), lr, epochs, batchnorm, patience)])


# Section 1.7: the recipes for small, medium and large data sets -----------------------------------


def recipe_a(
    head_epochs: int = 5,
    tune_epochs: int = 10,
    scale: float = 1.0,
    *,
    batchnorm: str = "frozen",
    patience: int | None = 3,
    monitor: str = "val_accuracy",
) -> Plan:
    """Recipe A, for a small data set (about 10,000 images): the head at 1e-3, then the last block.

    In the second stage head and last block both learn at 1e-5. Each stage stops when validation
    accuracy, which the course document prescribes, has not improved for `patience` epochs. For a
    model without that metric, pass monitor="val_loss".

    Args:
        head_epochs, tune_epochs: the maximum number of epochs of each stage.
        scale: multiplies the learning rates, which are meant for 10,000 images or more. With a few
            hundred images an epoch has few steps; try 10.

    `tlkeras fit digits --labels-per-class 30 --recipe recipe_a`: 96.5 ± 0.7 % on test.

    >>> tlk.recipes.recipe_a(scale=10)
    stage       what learns     learning rate  epochs  BatchNorm  patience
    ----------  --------------  -------------  ------  ---------  --------
    head        head_only()              0.01       5  frozen            3
    last block  last_blocks(1)         0.0001      10  frozen            3
    """
    stopping: dict[str, Any] = {"batchnorm": batchnorm, "patience": patience, "monitor": monitor}
    return Plan(
        [
            Stage("head", policies.head_only(), 1e-3 * scale, head_epochs, **stopping),
            Stage("last block", policies.last_blocks(1), 1e-5 * scale, tune_epochs, **stopping),
        ]
    )


def recipe_b(
    head_epochs: int = 5,
    tune_epochs: int = 10,
    scale: float = 1.0,
    blocks: int = 3,
    *,
    augment: Callable | None = None,
    batchnorm: str = "frozen",
    patience: int | None = 3,
    monitor: str = "val_loss",
) -> Plan:
    """Recipe B, for a medium data set (about 50,000 images): the head at 1e-4, then 2 to 4 blocks.

    In the second stage the head learns at 1e-4, top blocks at 1e-5, lower blocks at 1e-6. The
    recipe includes regularisation: `augment`, used in both stages here, weight decay in the
    optimizer (AdamW has it), and dropout in the head (`add_head(..., dropout=0.2)`).

    Args:
        head_epochs, tune_epochs: the maximum number of epochs of each stage.
        scale: multiplies the learning rates.
        blocks: the number of backbone blocks that learn, 2 to 4.
        augment: a Keras layer or model for the training images.

    Raises ValueError if `blocks` is not 2, 3 or 4.

    `tlkeras fit digits --labels-per-class 30 --recipe recipe_b`: 98.9 ± 0.3 % on test.

    >>> plan = tlk.recipes.recipe_b(blocks=2, augment=keras.layers.RandomFlip("horizontal"))
    >>> plan
    stage   what learns     learning rate    epochs  BatchNorm  patience
    ------  --------------  ---------------  ------  ---------  --------
    head    head_only()     0.0001                5  frozen            3
    last 2  last_blocks(2)  0.0001 by block      10  frozen            3
    >>> plan.stages[1].rates
    {'head': 1.0, 'top': 0.1, 'middle': 0.01, 'bottom': 0.01}
    """
    if not 2 <= blocks <= 4:
        raise ValueError(
            f"Recipe B unfreezes 2 to 4 blocks, found {blocks}; or recipe_a, recipe_c."
        )
    options: dict[str, Any] = {
        "batchnorm": batchnorm, "patience": patience, "monitor": monitor, "augment": augment,
    }  # fmt: skip
    rates = {"head": 1.0, "top": 0.1, "middle": 0.01, "bottom": 0.01}
    head, tune = policies.head_only(), policies.last_blocks(blocks)
    return Plan(
        [
            Stage("head", head, 1e-4 * scale, head_epochs, **options),
            Stage(f"last {blocks}", tune, 1e-4 * scale, tune_epochs, rates=rates, **options),
        ]
    )


def recipe_c(
    epochs: int = 20,
    scale: float = 1.0,
    *,
    augment: Callable | None = None,
    batchnorm: str = "frozen",
    patience: int | None = 3,
    monitor: str = "val_loss",
) -> Plan:
    """Recipe C, for a large data set or a far domain: every block at 1e-6, strong regularisation.

    The plan contains only a part of the regularisation: `augment` and early stopping. Dropout
    belongs to the model, `add_head(backbone, classes, dropout=0.5)`, and weight decay to the
    optimizer: `fit_stages(..., optimizer=keras.optimizers.AdamW(weight_decay=0.05))`.

    Args:
        epochs: the maximum number of epochs.
        scale: multiplies the learning rate.
        augment: a Keras layer or model for the training images.

    `tlkeras fit digits --labels-per-class 30 --recipe recipe_c`: 16.2 ± 7.8 % on test. 300 images
    are far too few for a learning rate that is meant for hundreds of thousands.

    >>> tlk.recipes.recipe_c(augment=keras.layers.RandomFlip("horizontal"))
    stage  what learns   learning rate  epochs  BatchNorm  patience
    -----  ------------  -------------  ------  ---------  --------
    full   all_blocks()  1e-06              20  frozen            3
    """
    stopping: dict[str, Any] = {"patience": patience, "monitor": monitor, "augment": augment}
    return Plan([Stage("full", policies.all_blocks(), 1e-6 * scale, epochs, batchnorm, **stopping)])

"""Named plans: the practical playbook of section 1.6.

Learning rates are for AdamW. The head starts from nothing and learns fast; pretrained blocks
learn 10 to 100 times slower, so that they adapt and do not forget.
"""

from tlkeras import policies
from tlkeras.plan import Plan, Stage


def head_only(
    epochs: int = 10,
    head_lr: float = 1e-3,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Option 1: feature extraction. Fast and safe; limited where the target is very different."""
    return Plan([_stage("head", policies.head_only(), head_lr, epochs, batchnorm, patience)])


def two_stage(
    head_epochs: int = 5,
    tune_epochs: int = 10,
    head_lr: float = 1e-3,
    tune_lr: float = 1e-5,
    blocks: int = 1,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Playbook A, the default choice: the head first, then the last `blocks` with it, slower."""
    return Plan(
        [
            _stage("head", policies.head_only(), head_lr, head_epochs, batchnorm, patience),
            _stage("tune", policies.last_blocks(blocks), tune_lr, tune_epochs, batchnorm, patience),
        ]
    )


def progressive(
    head_epochs: int = 5,
    block_epochs: int = 5,
    head_lr: float = 1e-3,
    block_lr: float = 1e-5,
    blocks: int = 3,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Playbook B, gradual unfreezing: the head, then one block more a stage, from the top down.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", section 3.3.
    """
    stages = [_stage("head", policies.head_only(), head_lr, head_epochs, batchnorm, patience)]
    for n in range(1, blocks + 1):
        policy = policies.last_blocks(n)
        stages.append(_stage(f"last {n}", policy, block_lr, block_epochs, batchnorm, patience))
    return Plan(stages)


def middle_only(
    head_epochs: int = 5,
    tune_epochs: int = 10,
    head_lr: float = 1e-3,
    tune_lr: float = 1e-5,
    *,
    batchnorm: str = "frozen",
    patience: int | None = None,
) -> Plan:
    """Option 4: the head first, then the middle blocks with it; bottom and top stay."""
    return Plan(
        [
            _stage("head", policies.head_only(), head_lr, head_epochs, batchnorm, patience),
            _stage("middle", policies.middle_blocks(), tune_lr, tune_epochs, batchnorm, patience),
        ]
    )


def full(
    epochs: int = 10, lr: float = 1e-5, *, batchnorm: str = "frozen", patience: int | None = None
) -> Plan:
    """Option 3: every block learns from the first step. For a model from scratch, too, with
    batchnorm="train" and a learning rate of about 1e-3.
    """
    return Plan([_stage("full", policies.all_blocks(), lr, epochs, batchnorm, patience)])


def _stage(name, policy, learning_rate, epochs, batchnorm, patience) -> Stage:
    return Stage(name, policy, learning_rate, epochs, batchnorm, patience)

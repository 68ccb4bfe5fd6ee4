"""The decision guide: choose a strategy and a plan from four facts about a problem."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tlkeras.advice.probing import Probe
from tlkeras.advice.shift import Shift
from tlkeras.plans import recipes
from tlkeras.plans.plan import Plan
from tlkeras.utils.tables import Table

COMPUTE = ("low", "medium", "high")  # a laptop, one GPU for an hour or two, several for days
# The largest number of images in a small and in a medium data set. The limits are geometric means
# between the sizes of the recipes in course section 1.7 (about 10,000, about 50,000, more).
SMALL, MEDIUM = 22_000, 70_000
FEW = 0.1  # below this share of labelled images, the unlabelled ones are worth learning from


@dataclass(frozen=True)
class Rule:
    """One line of the guide: when it applies, what to do, and why.

    Attributes:
        images: "small", "medium", "large" or "any".
        shift: "low", "high" or "any".
        compute: the least compute that the strategy needs.
        strategy: the strategy, as text.
        plan: a function that makes the plan; its argument is a factor for the learning rates.
        meant_for: how many images the recipe's learning rates assume.
        before: what to do before training: a line of code, an instruction, or "".
        why, watch: the reason, and what to look at during training.
        source: where the line comes from.
    """

    images: str
    shift: str
    compute: str
    strategy: str
    plan: Callable[[float], Plan]
    meant_for: int
    before: str
    why: str
    watch: str
    source: str


RULES = (
    Rule(
        *("small", "low", "low", "the head alone"),
        plan=lambda scale: recipes.head_only(epochs=30, head_lr=1e-3 * scale, patience=5),
        meant_for=10_000,
        before="",
        why="the network's features fit already, and a head has too few parameters to overfit",
        watch="training accuracy that stops well below what you need: the features do not fit",
        source="section 1.11, line 1",
    ),
    Rule(
        *("small", "low", "medium", "the head, then the last block"),
        plan=lambda scale: recipes.recipe_a(30, 20, scale),
        meant_for=10_000,
        before="",
        why="the features fit, and there is time to try whether the last block gains anything",
        watch="validation of the second stage: where it does not rise, keep the head",
        source="section 1.7, rule 1 and recipe A",
    ),
    Rule(
        *("small", "high", "medium", "one more block per stage, at a small rate"),
        plan=lambda scale: recipes.progressive(15, 10, 1e-3 * scale, 1e-5 * scale, patience=3),
        meant_for=10_000,
        before="",
        why="the features do not fit, and few images would overwrite all of them at once",
        watch="the first stage that does not improve validation: stop there",
        source="section 1.11, line 2",
    ),
    Rule(
        *("medium", "any", "medium", "the head, then two to four blocks"),
        plan=lambda scale: recipes.recipe_b(10, 20, scale),
        meant_for=50_000,
        before="",
        why="there are enough images to adapt the upper blocks, but not enough for all of them",
        watch="training and validation loss drifting apart: augment, or open fewer blocks",
        source="section 1.11, line 3, and recipe B",
    ),
    Rule(
        *("large", "any", "medium", "the head, then two to four blocks"),
        plan=lambda scale: recipes.recipe_b(10, 20, scale, blocks=4),
        meant_for=50_000,
        before="",
        why="training all blocks would gain more, but needs more compute",
        watch="whether the last block opened still gains: if so, more compute would, too",
        source="section 1.7, rule 2",
    ),
    Rule(
        *("large", "any", "high", "every block"),
        plan=lambda scale: recipes.recipe_c(20, scale),
        meant_for=100_000,
        before="",
        why="with so many images every block can learn, and a small rate keeps what is useful",
        watch="forgetting: accuracy on the old task, if you still need it",
        source="section 1.11, line 4, and recipe C",
    ),
    Rule(
        *("any", "any", "low", "adapters (LoRA) in a frozen network"),
        plan=lambda scale: recipes.full(epochs=20, lr=1e-3 * scale, patience=5),
        meant_for=10_000,
        before="tlk.flavors.lora.add(model, rank=8)",
        why="small matrices next to the frozen ones adapt every layer, and nothing else learns",
        watch="seconds: LoRA saves memory and storage, and no time",
        source="section 1.11, line 5",
    ),
)
UNLABELLED = Rule(
    *("any", "any", "medium", "self-supervised pretraining, then fine-tuning on few labels"),
    plan=lambda scale: recipes.recipe_a(30, 20, scale),
    meant_for=10_000,
    before="pretrain the backbone on the images without labels (sections 1.8 and 1.10)",
    why="unlabelled images teach what your images look like, and a few labels name the classes",
    watch="a control: the same plan without the pretraining",
    source="section 1.11, line 6",
)


@dataclass(frozen=True)
class Recommendation:
    """The result of `tlk.recommend`.

    Attributes:
        strategy: the strategy, as text.
        plan: a plan, ready for `tlk.fit_stages`.
        before: what to do first: a line of code, an instruction, or "".
        why: the reason.
        watch: what to look at during training.
        source: where the advice comes from.
    """

    strategy: str
    plan: Plan
    before: str
    why: str
    watch: str
    source: str

    def lines(self) -> list[tuple[str, str]]:
        """Return everything but the plan, as pairs of a label and a text."""
        said = [
            *(("strategy", self.strategy), ("first", self.before), ("why", self.why)),
            *(("watch", self.watch), ("from", self.source)),
        ]
        return [(word, text) for word, text in said if text]

    def __repr__(self) -> str:
        said = "\n".join(f"{word + ':':10}{text}" for word, text in self.lines())
        return f"{said}\n\n{self.plan!r}"

    def _repr_html_(self) -> str:
        said = "<br>".join(f"<b>{word}:</b> {html.escape(text)}" for word, text in self.lines())
        return f"<p>{said}</p>{self.plan._repr_html_()}"


def recommend(
    images: int | str,
    shift: str | Probe | Shift = "low",
    compute: str = "low",
    labelled: bool | int = True,
) -> Recommendation:
    """Recommend a strategy to try first, with a plan to train and the reason.

    The recommendation is a first guess. Check it with a probe and with validation data; chapter 11
    measures where it holds.

    Args:
        images: the number of training images; or "small" (up to 22,000), "medium" (up to 70,000)
            or "large". With fewer images than a recipe assumes, its learning rates are raised,
            at most tenfold, because an epoch has fewer steps.
        shift: how different the images are from those the network was trained on: "low" or
            "high". Or the result of `tlk.probe` on them: low if no block is significantly better
            than the last. Or the result of `tlk.measure_shift`, which needs no labels: low if the
            images do not differ.
        compute: "low" (a laptop), "medium" (a GPU for an hour or two) or "high".
        labelled: whether the images have labels, or how many of them do.

    Raises:
        ValueError: for any other word or number; for more labelled images than images; if
            `tlk.measure_shift` found that the images differ, because that does not tell whether
            the features are useful; or for too few labels with low compute, because there is no
            advice for that case.

    Source: course sections 1.7 and 1.11.

    >>> advice = tlk.recommend(images=8_000, shift="high", compute="low")
    >>> advice.strategy, advice.before
    ('adapters (LoRA) in a frozen network', 'tlk.flavors.lora.add(model, rank=8)')
    >>> tlk.recommend(images=2_000, shift="low", compute="low").plan
    stage  what learns  learning rate  epochs  BatchNorm  patience
    -----  -----------  -------------  ------  ---------  --------
    head   head_only()          0.005      30  frozen            5
    """
    near = _shift(shift)
    if compute not in COMPUTE:
        raise ValueError(f"compute must be one of {list(COMPUTE)}, not {compute!r}.")
    total, size = _amount(images)
    few, count = _labels(labelled, total)
    if few:
        if compute == "low":
            raise ValueError(
                "With so few labels and little compute there is nothing to recommend: label a few "
                "images of each class and ask about those alone, or find compute='medium'."
            )
        return _advice(UNLABELLED, count)
    return _advice(_rule(size, near, compute), count)


def guide() -> Table:
    """Return a table of all the rules that `tlk.recommend` chooses from.

    >>> from tlkeras.advice.recommending import guide
    >>> guide().header
    ['images', 'shift', 'compute, at least', 'strategy', 'from']
    """
    rows = [[r.images, r.shift, r.compute, r.strategy, r.source] for r in RULES]
    rows.append(["any, few labels", *[getattr(UNLABELLED, name) for name in _SHOWN]])
    return Table(rows, ["images", "shift", "compute, at least", "strategy", "from"])


_SHOWN = ("shift", "compute", "strategy", "source")


def _rule(size: str, shift: str, compute: str) -> Rule:
    """Return the matching rule that uses the most available compute; ties go to the first."""
    fitting = [
        rule
        for rule in RULES
        if rule.images in (size, "any") and rule.shift in (shift, "any")
        if COMPUTE.index(rule.compute) <= COMPUTE.index(compute)
    ]
    return max(fitting, key=lambda rule: COMPUTE.index(rule.compute))


def _advice(rule: Rule, images: int | None) -> Recommendation:
    scale = 1.0 if images is None else min(max(rule.meant_for / images, 1.0), 10.0)
    why = rule.why
    if scale > 1:
        why += f"; rates times {scale:.2g}, for the recipe is made for {rule.meant_for:,} images"
    plan = rule.plan(float(f"{scale:.2g}"))
    return Recommendation(rule.strategy, plan, rule.before, why, rule.watch, rule.source)


def _shift(shift: Any) -> str:
    if isinstance(shift, Probe):
        return "low" if shift.last_serves else "high"
    if isinstance(shift, Shift):
        if shift.differs:
            raise ValueError(
                "The images differ from those the network knows, which does not say whether its "
                "features serve (chapter 11): label a few and pass what tlk.probe finds, or say "
                "'low' or 'high'."
            )
        return "low"
    if shift not in ("low", "high"):
        raise ValueError(
            f"shift must be 'low', 'high', or what tlk.probe or tlk.measure_shift found on your "
            f"images, not {shift!r}."
        )
    return shift


def _amount(images: Any) -> tuple[int | None, str]:
    """Return the number of images, or None if it is not known, and the word for that size."""
    if isinstance(images, str):
        if images not in ("small", "medium", "large"):
            raise ValueError(
                f"images must be 'small', 'medium', 'large' or how many; found {images!r}."
            )
        return None, images
    if isinstance(images, bool) or int(images) != images or images < 1:
        raise ValueError(f"images must be how many there are, at least 1, not {images!r}.")
    size = "small" if images <= SMALL else "medium" if images <= MEDIUM else "large"
    return int(images), size


def _labels(labelled: Any, images: int | None) -> tuple[bool, int | None]:
    """Return whether too few images have labels, and how many images to train on (or None)."""
    if isinstance(labelled, bool):
        return not labelled, images
    if images is None:
        raise ValueError("To say how many are labelled, say how many images there are, too.")
    if int(labelled) != labelled or not 0 <= labelled <= images:
        raise ValueError(
            f"labelled must be True, False, or how many of the images have a label; found "
            f"{labelled!r} of {images:,}."
        )
    if labelled < FEW * images:
        return True, int(labelled) or None
    return False, int(labelled)

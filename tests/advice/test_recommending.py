"""The decision guide: every line of it, and the questions around it."""

import itertools

import pytest

import tlkeras as tlk
from tlkeras.advice.recommending import COMPUTE, RULES, guide
from tlkeras.advice.shift import Shift
from tlkeras.plans.plan import Plan


@pytest.mark.parametrize(
    ("images", "shift", "compute", "strategy"),
    [  # the document's table, section 1.11, line by line
        ("small", "low", "low", "the head alone"),
        ("small", "high", "medium", "one more block per stage"),
        ("medium", "low", "medium", "two to four blocks"),
        ("medium", "high", "medium", "two to four blocks"),
        ("large", "low", "high", "every block"),
        ("large", "high", "high", "every block"),
        ("small", "high", "low", "adapters"),
        ("large", "low", "low", "adapters"),
    ],
)
def test_the_documents_table(images, shift, compute, strategy):
    assert strategy in tlk.recommend(images, shift, compute).strategy


def test_every_question_has_an_answer_with_a_plan():
    for asked in itertools.product(("small", "medium", "large"), ("low", "high"), COMPUTE):
        advice = tlk.recommend(*asked)
        assert isinstance(advice.plan, Plan) and advice.why and advice.watch, asked
        assert repr(advice.plan) in repr(advice) and advice.source in advice._repr_html_()


def test_more_compute_never_opens_fewer_blocks():
    def opened(advice):
        policies = [str(stage.policy) for stage in advice.plan.stages]
        return 99 if "all_blocks()" in policies else len(policies)

    for images, shift in itertools.product(("small", "medium", "large"), ("low", "high")):
        found = [opened(tlk.recommend(images, shift, c)) for c in ("medium", "high")]
        assert found == sorted(found)


def test_images_without_labels_are_learned_from_first():
    for labelled in (False, 300):
        advice = tlk.recommend(8_000, "high", "medium", labelled=labelled)
        assert "self-supervised" in advice.strategy and advice.before
    assert "self-supervised" not in tlk.recommend(8_000, "low", "low", labelled=4_000).strategy
    with pytest.raises(ValueError, match="label a few images of each class"):
        tlk.recommend(8_000, labelled=False)


@pytest.mark.parametrize(("images", "size"), [(2_000, 5), (300, 10), (10_000, 1), (20_000, 1)])
def test_rates_grow_by_what_the_steps_lack(images, size):
    [stage] = tlk.recommend(images).plan.stages
    assert stage.learning_rate == pytest.approx(1e-3 * size)


def test_a_probe_says_how_far_the_data_are():
    import numpy as np

    from tlkeras.advice.probing import Probe

    def probed(*right):
        return Probe(("stem", "top"), np.arange(200) < np.array(right)[:, None], (0.0, 0.0))

    assert tlk.recommend(500, probed(120, 180)).strategy == "the head alone"
    assert tlk.recommend(500, probed(180, 120)).strategy.startswith("adapters")


def test_a_distance_says_it_only_where_there_is_none():
    alike, different = (Shift(0.003, (low, 0.01), chance=0.002) for low in (0.001, 0.0025))
    assert tlk.recommend(500, alike).strategy == "the head alone"
    with pytest.raises(ValueError, match="does not say whether its features serve"):
        tlk.recommend(500, different)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"images": "tiny"}, "'small', 'medium', 'large' or how many; found 'tiny'"),
        ({"images": 0}, "at least 1, not 0"),
        ({"images": 2.5}, "not 2.5"),
        ({"images": 100, "shift": "measure"}, "tlk.measure_shift found on your images"),
        ({"images": 100, "compute": "much"}, r"one of \['low', 'medium', 'high'\], not 'much'"),
        ({"images": 100, "labelled": 200}, "found 200 of 100"),
        ({"images": "small", "labelled": 20}, "say how many images there are"),
    ],
)
def test_what_cannot_be_answered(asked, said):
    with pytest.raises(ValueError, match=said):
        tlk.recommend(**asked)


def test_the_guide_shows_every_line():
    assert len(guide().cells) == len(RULES) + 1

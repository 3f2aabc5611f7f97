"""Verdicts at their boundaries, for every kind of claim, and Holm's correction."""

import math

import numpy as np
import pytest
from scipy import stats
from simulated_studies import LADDER, PRIMARY, SEEDS, truth

from mobilebert.claims.judge import judge, thresholds
from mobilebert.claims.measured import Answers, Measured, Pretrained, Score, Timing
from mobilebert.claims.text import condition
from mobilebert.paper.claims import claims

KNOWN = {claim.id: claim for claim in claims()}
TEACHER = {"ib-bert-large": {0: Pretrained(4.0, 9.0)}}
WAVE = np.array([[0, 1, -1], [1, -1, 0], [-1, 0, 1]])  # rows and columns sum to 0: residuals without effects


def pretrained(means, sd, **fields):
    """Return runs of three seeds: each row's mean, and a wave of the rows in turn."""
    return {
        row: {seed: Pretrained(float(mean + sd * WAVE[number % 3][seed]), 9.0, **fields) for seed in range(SEEDS)}
        for number, (row, mean) in enumerate(means.items())
    }


def only(name, measured):
    return judge([KNOWN[name]], measured)[0]


def losses(gap, sd=0.01, **fields):
    """Return two rows, the student `gap` nat better, with residuals of +-sd."""
    return Measured(losses=pretrained({"scratch": 6.0, "mobilebert": 6.0 - gap}, sd, **fields), teachers=TEACHER)


def reach(finding):
    (low, high), value = finding.intervals[0], finding.effects[0].value
    assert high - value == pytest.approx(value - low)
    return high - value


def test_an_interval_is_student_ts():
    finding = only("teacher-pays", losses(0.2))
    difference = 0.01 * (WAVE[0] - WAVE[1])
    expected = stats.t.ppf(0.975, 2) * difference.std(ddof=1) / math.sqrt(3)
    assert reach(finding) == pytest.approx(expected)
    assert finding.confidence == 0.95


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gain_is_told_once_its_interval_lies_wholly_beyond_the_margin(sign):
    limit = 0.05 + reach(only("teacher-pays", losses(0.2)))
    told, untold = (only("teacher-pays", losses(sign * (limit + step))) for step in (1e-6, -1e-6))
    assert told.verdict == ("reproduced" if sign > 0 else "contradicted")
    assert untold.verdict == "inconclusive"


def test_the_smallest_difference_has_a_power_of_four_fifths():
    finding = only("teacher-pays", losses(0.0))
    effect = finding.effects[0]
    assert finding.smallest == pytest.approx((stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * effect.error)


def schedules(first, second, sd=0.001):
    means = {"mobilebert": 6.0 - first, "mobilebert-jkt": 6.0, "mobilebert-akt": 6.0 + second, "scratch": 6.5}
    return Measured(losses=pretrained(means, sd), teachers=TEACHER)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (0.0, 0.0, "reproduced"),  # ">=" is non-inferiority: equal schedules keep it
        (-0.04, -0.04, "reproduced"),
        (0.3, -0.05, "inconclusive"),  # one link stands at the margin
        (-0.05, 0.3, "inconclusive"),
        (0.3, -0.2, "contradicted"),
        (-0.2, 0.3, "contradicted"),
    ],
)
def test_an_order_needs_every_link(first, second, verdict):
    assert only("order-of-schedules", schedules(first, second)).verdict == verdict


def ladder(pd, fmt, at, sd=0.001):
    means = dict(zip(LADDER, 6 - np.cumsum([0, pd, fmt, at])))
    return Measured(losses=pretrained(means, sd), teachers=TEACHER)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.1, 0.2, 0.1), "reproduced"),
        ((0.1, 0.1, 0.1), "inconclusive"),
        ((0.2, 0.1, 0.0), "contradicted"),
        ((0.0, 0.1, 0.2), "contradicted"),
        ((-0.3, -0.1, -0.3), "reproduced"),
    ],
)
def test_the_most_is_gained_if_both_contrasts_are_above_zero(gains, verdict):
    finding = only("fmt-gains-most", ladder(*gains))
    assert finding.verdict == verdict
    assert [effect.value for effect in finding.effects] == pytest.approx([gains[1] - gains[0], gains[1] - gains[2]], abs=0.01)


# --- what voids a claim


@pytest.mark.parametrize(("below", "verdict"), [(1.0, "reproduced"), (0.9999, "void")])
def test_a_teacher_must_stand_one_nat_below_the_unigram_entropy(below, verdict):
    measured = losses(1.0)
    teachers = {"ib-bert-large": {0: Pretrained(4.0, 4.0 + below)}}
    assert only("teacher-pays", Measured(losses=measured.losses, teachers=teachers)).verdict == verdict


@pytest.mark.parametrize(("loss", "verdict"), [(5.8, "reproduced"), (5.8001, "void"), (6.2, "void"), (None, "void")])
def test_a_teacher_must_be_ahead_of_the_scratch_student(loss, verdict):
    teachers = {"ib-bert-large": {0: Pretrained(loss, 9.0)}}
    assert only("teacher-pays", Measured(losses=losses(1.0).losses, teachers=teachers)).verdict == verdict


def test_without_records_of_the_teacher_or_of_a_scratch_student_a_claim_is_not_run():
    given = schedules(0, 0).losses
    finding = only("order-of-schedules", Measured(losses=given))
    assert (finding.verdict, finding.reason) == ("not run", "no record of ib-bert-large")
    given.pop("scratch")
    finding = only("order-of-schedules", Measured(losses=given, teachers=TEACHER))
    assert (finding.verdict, finding.reason) == ("not run", "no record of a student trained alone, to compare the teacher with")


@pytest.mark.parametrize("loss", [None, 9.0])
def test_a_run_that_did_not_learn_voids_its_claims_alone(loss):
    measured = losses(1.0)
    measured.losses["mobilebert"][1] = Pretrained(loss, 9.0)
    finding = only("teacher-pays", measured)
    assert (finding.verdict, finding.reason) == ("void", "mobilebert with seed 1 has not learnt")
    other = schedules(0, 0)
    other.losses["scratch"][1] = Pretrained(loss, 9.0)
    assert only("order-of-schedules", other).verdict == "reproduced"


def test_rows_of_different_layouts_or_budgets_void_a_claim():
    for fields, reason in (({"layout": "wide"}, "different layouts"), ({"tokens": 1.02e6}, "read 1.00 million tokens")):
        measured = losses(1.0, tokens=1e6)
        run = measured.losses["mobilebert"][2]
        measured.losses["mobilebert"][2] = Pretrained(run.loss, 9.0, **{"tokens": 1e6} | fields)
        finding = only("teacher-pays", measured)
        assert finding.verdict == "void"
        assert reason in finding.reason


def test_a_claim_without_records_is_not_run():
    assert {finding.verdict for finding in judge(PRIMARY, Measured())} == {"not run"}


def test_too_few_seeds_are_inconclusive_however_large_the_gain():
    measured = losses(1.0)
    del measured.losses["scratch"][2]
    finding = only("teacher-pays", measured)
    assert (finding.verdict, finding.reason) == ("inconclusive", "2 of 3 seeds")


def test_a_row_that_spreads_too_far_is_inconclusive_and_spoils_no_other_claim():
    measured = ladder(0.1, 0.3, 0.1)
    run = measured.losses["mobilebert"][0]
    measured.losses["mobilebert"][0] = Pretrained(run.loss + 0.5, 9.0)
    assert only("at-helps", measured).verdict == "inconclusive"
    assert "three times as far apart" in only("at-helps", measured).reason
    assert only("fmt-helps", measured).verdict == "reproduced"


# --- int8, speeds, scores, sizes


def answers(spoilt, rows=5000, reference=False, **fields):
    """Return a float model that answers half of the rows, and an int8 model that loses `spoilt`."""
    before = np.arange(rows) < rows // 2
    after = before & (np.arange(rows) >= spoilt)
    return Measured(
        answers={"qnli": {"mobilebert": {0: Answers(before, failed=reference)}, "mobilebert:int8": {0: Answers(after, **fields)}}}
    )


def test_no_loss_is_told_against_the_margin_of_one_point():
    assert only("int8-loses-nothing", answers(0)).verdict == "reproduced"
    at_margin = only("int8-loses-nothing", answers(50))
    assert (at_margin.effects[0].value, at_margin.verdict) == (pytest.approx(-1.0), "inconclusive")
    half = reach(at_margin)
    for rows, verdict in ((50 - math.ceil(50 * half) - 3, "reproduced"), (50 + math.ceil(50 * half) + 8, "contradicted")):
        assert only("int8-loses-nothing", answers(rows)).verdict == verdict


def test_no_loss_needs_2000_rows_where_there_are_as_many():
    assert only("int8-loses-nothing", answers(0, rows=800)).verdict == "reproduced"  # all rows of a small task
    finding = only("int8-loses-nothing", answers(0, rows=1999, is_whole=False))
    assert (finding.verdict, finding.reason) == ("inconclusive", "qnli: 1,999 of 2,000 rows")
    assert only("int8-loses-nothing", answers(0, rows=2000, is_whole=False)).verdict == "reproduced"


def test_tasks_that_the_float_model_has_not_learnt_say_nothing():
    unlearnt = answers(0, reference=True)
    finding = only("int8-loses-nothing", unlearnt)
    assert (finding.verdict, finding.reason) == ("void", "a model has not learnt qnli")
    both = Measured(answers={**unlearnt.answers, "sst2": answers(0).answers["qnli"]})
    finding = only("int8-loses-nothing", both)
    assert (finding.verdict, [part.name for part in finding.details]) == ("reproduced", ["sst2"])


def test_an_int8_model_that_collapses_contradicts_the_claim():
    assert only("int8-loses-nothing", answers(2500, failed=True)).verdict == "contradicted"


def test_a_task_without_predictions_does_not_let_the_others_decide():
    measured = answers(0)
    measured.answers["mnli"] = {arm: {0: Answers(None)} for arm in ("mobilebert", "mobilebert:int8")}
    finding = only("int8-loses-nothing", measured)
    assert (finding.verdict, finding.reason) == ("inconclusive", "the predictions on mnli are not beside the records")


@pytest.mark.parametrize("other", [{1: (10, ())}, {1: (20, ())}, {0: (20, tuple(range(1, 21)))}])
def test_answers_to_other_rows_are_not_paired(other):
    known = {0: (20, tuple(range(20))), 1: (20, tuple(range(20)))}
    sides = [
        {seed: Answers(np.ones(count, bool), idx=idx) for seed, (count, idx) in (known | more).items()} for more in ({}, other)
    ]
    measured = Measured(answers={"sst2": dict(zip(("mobilebert", "mobilebert:int8"), sides, strict=True))})
    finding = only("int8-loses-nothing", measured)
    assert (finding.verdict, finding.reason) == ("not run", "the models or seeds were scored on different rows of sst2")


def test_seeds_with_other_rows_are_no_error():
    runs = {seed: Answers(np.ones(count, bool)) for seed, count in ((0, 10), (1, 20))}
    measured = Measured(answers={"sst2": {"mobilebert": runs, "mobilebert:int8": runs}})
    assert only("int8-loses-nothing", measured).verdict == "not run"


def test_a_teacher_without_a_unigram_entropy_voids_the_claim():
    measured = Measured(losses=losses(0.5).losses, teachers={"ib-bert-large": {0: Pretrained(4.0)}})
    finding = only("teacher-pays", measured)
    assert (finding.verdict, finding.reason) == ("void", "no unigram entropy in the record of the teacher, ib-bert-large")
    assert "not recorded" in condition(measured)


def test_equal_timings_at_the_limit_tell_nothing():
    times = tuple(Timing({"mobilebert": 1.0, "bert-base": 4.95}, "Pixel 4") for _ in range(7))
    assert only("faster-than-bert-base", Measured(timings=times)).verdict == "inconclusive"


def timings(ratio, device, count=7, void=None):
    times = [10.0 * ratio * (1 + 0.01 * (number % 3)) for number in range(count)]
    return Measured(timings=tuple(Timing({"mobilebert": 10.0, "bert-base": time}, device, void) for time in times))


def test_a_speed_is_judged_on_the_papers_device_alone():
    fast, slow = (timings(ratio, "Google Pixel 4") for ratio in (5.5, 4.0))
    assert only("faster-than-bert-base", fast).verdict == "reproduced"
    assert only("faster-than-bert-base", slow).verdict == "contradicted"
    assert only("faster-than-bert-base", timings(4.95 / 1.01, "Pixel 4")).verdict == "inconclusive"
    for ratio in (5.5, 1.0):
        finding = only("faster-than-bert-base", timings(ratio, "EPYC"))
        assert finding.verdict == "other device"
        assert math.exp(finding.effects[0].value) == pytest.approx(ratio * 1.01, rel=0.01)
        assert finding.intervals[0][0] < finding.effects[0].value < finding.intervals[0][1]
    assert only("faster-than-bert-base", timings(5.5, "Pixel 4", count=6)).reason == "6 of 7 timings in fresh processes"


def test_timings_of_different_engines_are_not_pooled():
    setups = ["pytorch, threads 1"] * 4 + ["onnxruntime, threads 1"] * 4
    times = tuple(Timing({"mobilebert": 1.0, "bert-base": 6.0}, "Pixel 4", setup=setup) for setup in setups)
    finding = only("faster-than-bert-base", Measured(timings=times))
    assert finding.verdict == "inconclusive"
    assert finding.reason == "timings that cannot be pooled: onnxruntime, threads 1; pytorch, threads 1"


def test_a_disturbed_timing_is_void_unless_others_are_quiet():
    disturbed = timings(5.5, "Pixel 4", void="other processes used 1.04 of a core")
    finding = only("faster-than-bert-base", disturbed)
    assert finding.verdict == "void"
    assert "1.04 of a core" in finding.reason
    mixed = Measured(timings=(*disturbed.timings, *timings(5.5, "Pixel 4").timings))
    assert only("faster-than-bert-base", mixed).verdict == "reproduced"


def test_an_exploratory_claim_has_an_interval_and_no_verdict():
    scores = {"squad_v1.1:f1": {"mobilebert": Score((90.0, 90.1), 0.01), "bert-base": Score((80.0, 80.1), 0.01)}}
    finding = only("squad-1", Measured(scores=scores))
    assert finding.verdict == "exploratory"
    assert finding.intervals[0][0] < 10.0 < finding.intervals[0][1]
    small = only("squad-1", Measured(scores=scores, scaled=frozenset({"bert-base"})))
    assert small.verdict == "not run"
    assert "paper's scale" in small.reason


def test_a_score_as_a_primary_claim_allows_its_margin():
    claim = KNOWN["squad-1"].model_copy(update={"standing": "primary"})
    assert thresholds(claim) == (0.0, 0.0)
    for lead, verdict in ((1.5, "reproduced"), (0.0, "inconclusive"), (-1.5, "contradicted")):
        sides = {"mobilebert": Score((80.0 + lead,), 0.01), "bert-base": Score((80.0,), 0.01)}
        assert judge([claim], Measured(scores={"squad_v1.1:f1": sides}))[0].verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(25.0, "reproduced"), (24.7, "contradicted"), (25.7, "contradicted")])
def test_a_size_is_judged_by_its_printed_digits(value, verdict):
    sizes = {("mobilebert-table1", "parameters"): value, ("bert-base", "parameters"): 107.5}
    assert only("smaller-than-bert-base", Measured(sizes=sizes)).verdict == verdict


# --- the correction


def test_holms_levels_follow_the_ranks_of_the_p_values():
    means, sd = truth([0.3, 0.6, 0.3], 0.3), 0.03
    measured = Measured(losses=pretrained(means, sd), teachers=TEACHER)
    found = [finding for finding in judge(PRIMARY, measured) if finding.effects]
    assert {finding.verdict for finding in found} == {"reproduced"}
    levels = sorted(1 - finding.confidence for finding in found)
    assert levels == pytest.approx([0.05 / (6 - rank) for rank in range(6)])


def test_after_one_claim_is_not_told_none_with_a_larger_p_value_is():
    means, sd = truth([0.0] * 3, 0.0), 0.02
    measured = Measured(losses=pretrained(means, sd), teachers=TEACHER)
    alone = only("order-of-schedules", measured)
    together = {finding.claim.id: finding for finding in judge(PRIMARY, measured)}
    error = together["order-of-schedules"].effects[0].error
    for finding in together.values():
        if finding.effects:
            assert finding.confidence == pytest.approx(1 - 0.05 / 6)
            assert finding.verdict == "inconclusive"
    assert alone.effects[0].error == error
    assert alone.confidence == 0.95


def test_the_verdict_is_that_of_the_printed_interval():
    generator = np.random.default_rng(3)
    for _ in range(40):
        means = truth(generator.normal(0, 0.15, 3), generator.normal(0, 0.15))
        runs = {
            row: {seed: Pretrained(mean + generator.normal(0, 0.03), 9.0) for seed in range(SEEDS)} for row, mean in means.items()
        }
        measured = Measured(losses=runs, teachers=TEACHER)
        for finding in judge(PRIMARY, measured):
            if not finding.effects or len(finding.effects) > 1 or finding.reason:
                continue
            (low, high), (above, below) = finding.intervals[0], thresholds(finding.claim)
            expected = "reproduced" if low >= above else "contradicted" if high <= below else "inconclusive"
            assert finding.verdict == expected

"""Simulated studies at every margin: the family of primary claims errs in at most 5 % of them.

`make test-long` draws many more, and writes the power into docs/claims.md.
"""

import pytest
from simulated_studies import MARGINS, NAT, SPEED, count, errors, truth

SD = 0.03
STUDIES = 150  # the draws are fixed, so the shares below are too


@pytest.mark.parametrize("options", [{"heavy": True}, {"failing": 0.1}, {"heavy": True, "failing": 0.1}], ids=str)
@pytest.mark.parametrize("margin", MARGINS)
def test_the_family_errs_in_at_most_5_percent_of_studies(margin, options):
    """With heavy tails and with 10 % of runs failing to learn, separately and together."""
    assert errors(STUDIES, 3, MARGINS[margin], SD, **options) <= 0.05


def test_without_the_correction_the_family_would_err_more_often(monkeypatch):
    monkeypatch.setattr("mobilebert.claims.judge.ERROR", 8 * 0.05)  # Holm's first level is then 5 %
    assert errors(STUDIES, 3, next(iter(MARGINS.values())), SD) > 0.1


def test_effects_of_four_standard_deviations_are_mostly_told():
    beyond = 4 * SD
    told = ("teacher-pays", "pd-helps", "fmt-helps", "at-helps", "order-of-schedules", "faster-than-bert-base")
    shares = count(60, 2, truth([NAT + beyond] * 3, beyond - NAT), SD, int8=0.0, ratio=1.2 * SPEED)
    assert min(shares[claim, "reproduced"] for claim in told) > 0.85
    shares = count(60, 2, truth([-NAT - beyond] * 3, -NAT - beyond), SD, int8=-0.05, ratio=0.8 * SPEED)
    assert min(shares[claim, "contradicted"] for claim in told) > 0.85

"""The first screen of the page: what was run, what held, what did not."""

import pytest
from short_records import of, record

from mobilebert.reporting.headline import answer, cards, headlines
from mobilebert.reporting.tables import fill
from mobilebert.reporting.verdicts import Outcome
from mobilebert.study.schema import Study

STUDY = Study(schema=1, description="d")


def outcome(name, result):
    return Outcome(name, result, 1.0, 0.0, "a above b", None, "because")


def sentences(records, outcomes=(), edited=()):
    return answer(fill(STUDY, records, edited), outcomes, edited)


def test_a_score_within_the_tolerance_is_counted_as_a_match():
    """Tables 6 and 8 print 92.1 for MobileBERT and SST-2, with a tolerance of 1 point."""
    records = of(record("finetune/mobilebert/sst2", metrics={"accuracy": 0.925}))
    cells = [cell for filled in fill(STUDY, records) for row in filled.rows for cell in row.cells]
    count = sum(cell.published == 92.1 and cell.measured == 92.5 for cell in cells)
    assert count > 0
    assert sentences(records)[0] == ("good", f"{count} of {count} judged cells match the paper.")


def test_a_score_far_away_makes_the_answer_bad():
    kind, sentence = sentences(of(record("finetune/mobilebert/sst2", metrics={"accuracy": 0.5})))[0]
    assert kind == "bad"
    assert sentence.startswith("0 of ")
    assert "differ" in sentence


def test_an_answer_without_a_judged_cell_says_why():
    labels = ("synthetic: generated data", "scaled: widths / 8", "search: none")
    kind, sentence = sentences(of(record("finetune/mobilebert/sst2", metrics={"accuracy": 0.925}, labels=labels)))[0]
    assert kind == "muted"
    assert sentence.endswith("neither confirmed nor refuted: this study ran on generated data and at a smaller scale.")


def test_models_that_did_not_learn_are_counted():
    records = of(record("finetune/mobilebert/sst2", metrics={"accuracy": 0.5, "failed_share": 1.0}))
    assert any("of models that did not learn" in sentence and kind == "bad" for kind, sentence in sentences(records))


def test_an_expectation_that_fails_is_named():
    kind, sentence = sentences({}, [outcome("one", "pass"), outcome("two", "fail"), outcome("three", "shown")])[1]
    assert (kind, sentence) == ("bad", "Expectations of the study that do not hold, 1 of 2: two.")
    assert sentences({}, [outcome("one", "pass")])[1][0] == "good"


def test_an_expectation_that_is_void_is_not_said_to_hold():
    found = cards(fill(STUDY, {}), [outcome("one", "pass"), outcome("two", "void")], None)
    (card,) = [card for card in found if card.title == "Expectations"]
    assert card.figure == "1 of 2"
    found = sentences({}, [outcome("one", "pass"), outcome("two", "void")])
    assert found[1:] == [("near", "Expectations of the study that are void, 1 of 2: two.")]


def test_cards_count_every_cell_once():
    measured, computed = (card for card in cards(fill(STUDY, {}), (), None))
    assert measured.figure == "0 of 0"
    assert sum(share.count for share in computed.shares) == int(computed.figure.split(" of ")[1])


def test_claims_are_counted_by_verdict():
    rows = [{"standing": "primary", "verdict": verdict} for verdict in ("reproduced", "reproduced", "void", "contradicted")]
    claims = {"rows": [*rows, {"standing": "exact", "verdict": "reproduced"}]}
    assert answer(fill(STUDY, {}), (), (), claims)[1] == ("bad", "Claims of the paper: 2 of 4 reproduced, 1 contradicted.")
    assert len(answer(fill(STUDY, {}), (), (), {"rows": rows[2:3]})) == 1  # no claim is decided
    found = cards(fill(STUDY, {}), (), claims)
    (card,) = [card for card in found if card.target == "claims"]
    assert card.figure == "2 of 4"
    assert [(share.name, share.count, share.tone) for share in card.shares] == [
        ("reproduced", 2, "good"),
        ("contradicted", 1, "bad"),
        ("void", 1, "muted"),
    ]


def test_baselines_stand_beside_the_score():
    records = of(
        record("finetune/mobilebert/sst2", metrics={"accuracy": 0.75, "majority": 0.51}),
        record("finetune/bag-of-embeddings/sst2", metrics={"accuracy": 0.5, "failed_share": 1.0}),
        record("finetune/bert-base/sst2", metrics={"accuracy": 0.8}),
        record("distill/mobilebert", metrics={"heldout_mlm_loss": 2.5, "unigram_entropy": 4.0}),
        record("distill/control-fresh-student", metrics={"heldout_mlm_loss": 3.25}),
    )
    heads, rows = headlines(STUDY, records, fill(STUDY, records))
    shown = {row.quantity: row for row in rows}
    assert heads == ["without a model", "BERT_BASE", "bag of embeddings", "transfer not loaded"]
    assert [row.quantity for row in rows[:4]] == ["GLUE score", "SQuAD v1.1 F1", "SQuAD v2.0 F1", "latency (ms)"]
    assert rows[0].measured == rows[3].measured == "not run"
    sst2, loss = shown["SST-2 accuracy"], shown["loss on held-out text (nats, lower is better)"]
    assert (sst2.published, sst2.measured) == ("92.1", "75.0 (n=1)")
    assert [sst2.baselines[head] for head in heads] == ["51.0", "80.0", "50.0 (failed)", "–"]
    assert loss.measured == "2.500"
    assert [loss.baselines[head] for head in heads] == ["4.000", "–", "–", "3.250"]


@pytest.mark.parametrize("value", [None, float("nan"), 10**400])
def test_a_headline_without_a_number_is_empty(value):
    records = of(record("finetune/mobilebert/wnli"))
    records["finetune/mobilebert/wnli"].metrics["accuracy"] = value
    _, rows = headlines(STUDY, records, fill(STUDY, records))
    assert {row.quantity: row.measured for row in rows}["WNLI accuracy"] == "–"

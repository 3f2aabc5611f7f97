"""The claims of the paper as data: they agree with its tables, and a bad file is refused."""

import pytest
from pydantic import ValidationError

from mobilebert import paper
from mobilebert.paper.claims import MOST_PRIMARY, Claim, Claims, claims

KNOWN = {claim.id: claim for claim in claims()}


def published(table, model, column):
    return next(row.published[column] for row in paper.table(table).rows if row.model == model)


def ratio(table, column, slow, fast):
    return published(table, slow, column) / published(table, fast, column)


def lead(table, column):
    return published(table, "mobilebert", column) - published(table, "bert-base", column)


CELLS = {  # claim -> the figure from the tables' cells, in the claim's unit
    "faster-than-bert-base": ratio(4, "latency_ms", "bert-base", "mobilebert"),
    "operations-make-it-fast": ratio(7, "latency_ms", "mobilebert-no-opt", "mobilebert"),
    "relu-is-faster": ratio(7, "latency_ms", "mobilebert-no-opt", "mobilebert-layernorm-relu"),
    "nonorm-is-faster": ratio(7, "latency_ms", "mobilebert-no-opt", "mobilebert-nonorm-gelu"),
    "tiny-is-faster": ratio(4, "latency_ms", "mobilebert", "mobilebert-tiny"),
    "smaller-than-bert-base": ratio(4, "params_M", "bert-base", "mobilebert"),
    "size-as-released": ratio(4, "params_M", "bert-base", "mobilebert"),
    "operations": published(4, "mobilebert", "flops_B"),
    "glue": lead(4, "GLUE"),
    "squad-1": lead(5, "v11_f1"),
    "squad-2": lead(5, "v20_f1"),
    "mrpc": published(4, "mobilebert", "MRPC"),
}


def test_every_printed_figure_is_that_of_the_tables():
    assert CELLS.keys() == {claim.id for claim in claims() if claim.printed}
    for name, figure in CELLS.items():
        printed = KNOWN[name].printed
        assert f"{figure:.{len(printed.partition('.')[2])}f}" == printed, name


def test_at_most_eight_claims_are_primary_and_each_kind_of_the_paper_has_one():
    primary = [claim for claim in claims() if claim.standing == "primary"]
    assert len(primary) == MOST_PRIMARY == 8
    assert {claim.kind for claim in claims()} == {"size", "speed", "pretraining", "order", "contrast", "no loss", "score"}


def test_sentences_name_no_row_of_this_suite():
    for claim in claims():
        assert "mobilebert" not in claim.sentence
        assert not claim.sentence.endswith(".")


GOOD = {
    "id": "a",
    "place": "Table 9",
    "sentence": "it helps",
    "kind": "pretraining",
    "standing": "primary",
    "links": [{"better": ["mobilebert-pd"], "than": ["mobilebert-bare"]}],
    "scaled": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"links": []}, "at least 1 item"),
        ({"links": [{"better": ["mobilbert"], "than": ["mobilebert-bare"]}]}, "unknown row 'mobilbert'"),
        ({"links": [{"better": ["mobilebert-pd", "scratch"], "than": ["scratch"]}]}, "both one row, or both two"),
        ({"links": [{"better": ["mobilebert-pd"]}]}, "only a size or a score is compared"),
        ({"links": [{"better": ["mobilebert-pd", "scratch"], "than": ["scratch", "mobilebert"]}]}, "are for a contrast"),
        ({"kind": "contrast"}, "are for a contrast"),
        ({"kind": "speed"}, "a claim of kind 'speed' needs printed"),
        ({"printed": "5.5"}, "a claim of kind 'pretraining' has no printed"),
        ({"kind": "no loss"}, "a claim of kind 'no loss' needs tasks"),
        ({"standing": "exact"}, "exact is for sizes"),
        ({"margin": -1}, "greater than or equal to 0"),
        ({"least": 0}, "greater than or equal to 1"),
        ({"void_if": ["bad luck"]}, "teacher unread"),
        ({"extra": 1}, "Extra inputs"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(change, message):
    Claim.model_validate(GOOD)
    with pytest.raises(ValidationError, match=message):
        Claim.model_validate(GOOD | change)


def test_two_claims_of_one_id_and_too_many_primary_ones_are_refused():
    with pytest.raises(ValidationError, match="two claims have the id a"):
        Claims.model_validate({"schema": 1, "claims": [GOOD, GOOD]})
    many = [GOOD | {"id": f"c{number}"} for number in range(MOST_PRIMARY + 1)]
    Claims.model_validate({"schema": 1, "claims": many[1:]})
    with pytest.raises(ValidationError, match="more than 8 claims are primary"):
        Claims.model_validate({"schema": 1, "claims": many})

"""The paper's tables as data: cells typed by hand from the paper, counts, and known names."""

import pytest

from mobilebert import paper
from mobilebert.reporting.architecture_columns import facts
from mobilebert.study.architecture import architecture
from mobilebert.study.recipe import TASK_NAMES
from mobilebert.study.schema import Study
from mobilebert.study.tasks import TASKS

TABLES = paper.tables()
STUDY = Study(schema=1, description="the paper")

# Table -> rows, columns, rows that this suite runs, non-empty published cells, the sum of their
# numbers.
COUNTS = {
    1: (5, 10, 5, 46, 36517.4),
    2: (9, 5, 9, 45, 14853.4),
    3: (4, 6, 4, 24, 1007.0),
    4: (12, 14, 4, 134, 9645.6),
    5: (9, 5, 4, 40, 2841.6),
    6: (4, 5, 4, 20, 1765.0),
    7: (4, 5, 4, 16, 535.8),
    8: (3, 5, 3, 15, 1327.9),
    9: (7, 4, 7, 28, 2477.0),
}
CELLS = [
    (1, "IB-BERT_LARGE", "mha", [512, 4, 1024]),
    (1, "IB-BERT_LARGE", "params_M", 293),
    (1, "BERT_BASE", "linear_in", None),
    (1, "MobileBERT", "ffn", [128, 512, 128]),
    (1, "MobileBERT_TINY", "n_ffn", 2),
    (1, "MobileBERT_TINY", "mha", [128, 4, 128]),
    (2, "(b)", "squad11_dev_f1", 88.6),
    (2, "(f)", "heads", 4),
    (2, "(i)", "squad11_dev_f1", 82.0),
    (2, "(a)", "params_M", 356),
    (3, "192", "mha_params_M", 8),
    (3, "160", "squad11_dev_f1", 83.4),
    (3, "96", "n_ffn", 8),
    (4, "MobileBERT", "GLUE", 77.7),
    (4, "MobileBERT", "latency_ms", 62),
    (4, "MobileBERT", "CoLA", 50.5),
    (4, "MobileBERT", "MNLI-mm", 82.6),
    (4, "MobileBERT w/o OPT", "RTE", 70.4),
    (4, "MobileBERT_TINY", "QQP", 68.9),
    (4, "BERT_BASE", "flops_B", 22.5),
    (4, "BERT_BASE", "STS-B", 85.8),
    (4, "TinyBERT", "SST-2", 92.6),
    (4, "OpenAI GPT", "GLUE", 76.9),
    (4, "BERT_BASE-6L-PKD", "CoLA", None),
    (5, "MobileBERT", "v11_f1", 90.0),
    (5, "MobileBERT", "v20_em", 76.2),
    (5, "MobileBERT w/o OPT", "v20_f1", 80.2),
    (5, "BERT_BASE", "v11_em", 80.8),
    (6, "MobileBERT", "MNLI-m", 83.9),
    (6, "MobileBERT + quantization", "QNLI", 90.8),
    (6, "MobileBERT_TINY + quantization", "MRPC", 86.3),
    (7, "NoNorm, relu", "latency_ms", 62),
    (7, "LayerNorm, relu", "latency_ms", 167),
    (8, "AKT", "SQuAD11_F1", 88.2),
    (8, "JKT", "MNLI-m", 83.5),
    (8, "PKT", "SST-2", 92.1),
    (9, "IB-BERT_LARGE", "QNLI", 93.2),
    (9, "MobileBERT (bare)", "MNLI-m", 80.8),
    (9, "+ PD", "SST-2", 91.7),
    (9, "+ PD + FMT + AT", "MRPC", 87.0),
]


@pytest.mark.parametrize(("number", "label", "key", "value"), CELLS)
def test_published_cells(number, label, key, value):
    (row,) = [row for row in paper.table(number).rows if row.label == label]
    assert row.published[key] == value


def numbers(value):
    if isinstance(value, list):
        return [item for part in value for item in numbers(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.number))
def test_counts_and_sums(table):
    """A cell that is changed, lost or added changes a count or the sum."""
    cells = [value for row in table.rows for value in row.published.values() if value is not None]
    ran = sum(row.model is not None for row in table.rows)
    total = sum(number for cell in cells for number in numbers(cell))
    assert (len(table.rows), len(table.columns), ran, len(cells), round(total, 1)) == COUNTS[table.number]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.number))
def test_every_name_is_known(table):
    keys = [column.key for column in table.columns]
    assert len(set(keys)) == len(keys)
    printed = {column.key for column in table.columns if column.metric != "speed_up"}  # a speed-up is computed
    for row in table.rows:
        assert set(row.published) == printed
        assert row.model is None or row.model in paper.models()
    known = facts(architecture(STUDY, "mobilebert", full_size=True))
    for column in table.columns:
        if column.source == "architecture":
            assert column.metric in known
        elif column.source == "finetune":
            assert column.task in TASK_NAMES
            metrics = TASKS[column.task].metrics
            assert column.metric.removeprefix("mismatched_") in metrics
            assert column.published_split in ("dev", "test server")
            assert (column.tolerance is None) == (column.published_split == "test server")


def test_rows_in_common_agree():
    """PKT of Table 8 is MobileBERT of Table 6; Tables 4 and 5 print the sizes of Table 1."""
    assert paper.table(8).rows[2].published == paper.table(6).rows[2].published
    sizes = {row.label: row.published["params_M"] for row in paper.table(1).rows}
    for number in (4, 5):
        for row in paper.table(number).rows:
            if row.label in sizes:
                assert row.published["params_M"] == sizes[row.label]

"""Latency and speed-up in Tables 4 and 7, with lines worked out by hand."""

import re

from table_lines import STUDY, line, lines, of, record

from mobilebert.reporting.tables import fill


def timed(*engines, **times):
    config = {"engines": list(engines), "threads": 4, "length": 128}
    metrics = {f"{name.replace('_', '-')}/{engine}:p50_ms": time for name, own in times.items() for engine, time in own.items()}
    return record("latency", config=config, samples={"mobilebert/pytorch": [60.0, 61.96, 63.0]}, **metrics)


def test_latency_is_a_median_with_its_setting_and_the_speed_up_is_a_ratio_of_one_engine():
    found = timed("pytorch", mobilebert={"pytorch": 61.96}, mobilebert_no_opt={"pytorch": 185.88})
    records = of(found)
    assert line(7, "NoNorm, relu", records)[-2:] == ["62.0 (n=3), not judged [1]", "3.00 (n=3), not judged [1] |"]
    assert line(7, "LayerNorm, gelu", records)[-2:] == ["185.9, not judged [1]", "1.00, not judged [1] |"]
    assert line(7, "NoNorm, gelu", records)[-2:] == ["not run", "not run |"]
    assert "- [1] pytorch, 4 threads, length 128, median of rounds" in lines(7, records)
    void = of(found.model_copy(update={"status": "void", "reason": "others used 0.5 cores"}))
    assert line(7, "NoNorm, relu", void)[-2:] == ["void [1]", "void [1] |"]
    assert any(
        text.endswith("void: others used 0.5 cores; measure again: snakemake --forcerun latency") for text in lines(7, void)
    )


def test_every_engine_of_a_timing_has_its_own_columns():
    records = of(timed("pytorch", "litert", mobilebert={"pytorch": 60.0, "litert": 70.0}, mobilebert_no_opt={"litert": 77.0}))
    (filled,) = [table for table in fill(STUDY, records) if table.number == 7]
    assert filled.heads[3:] == [
        "Latency, pytorch (ms)", "Speed-up, pytorch (x)", "Latency, litert (ms)", "Speed-up, litert (x)",
    ]  # fmt: skip
    assert line(7, "NoNorm, relu", records)[-4:] == [
        "60.0 (n=3), not judged [2]", "not run", "70.0, not judged [1]", "1.10, not judged [1] |",
    ]  # fmt: skip
    assert "- [1] litert, 4 threads, length 128, median of rounds" in lines(7, records)


def test_the_speed_of_an_output_far_from_float32_says_so():
    times = {"mobilebert": {"litert-int8": 60.0, "pytorch": 50.0}, "mobilebert_no_opt": {"litert-int8": 90.0, "pytorch": 99.0}}
    found = timed("pytorch", "litert-int8", **times)
    errors = {
        "mobilebert/litert-int8": 0.2, "mobilebert-no-opt/litert-int8": 0.449,
        "mobilebert/pytorch": 1e-6, "mobilebert-no-opt/pytorch": None,
    }  # fmt: skip
    found = found.model_copy(update={"details": {"models": {name: {"error": error} for name, error in errors.items()}}})
    found._seal = "sealed"
    text = {row: line(7, row, of(found)) for row in ("NoNorm, relu", "LayerNorm, gelu")}
    notes = dict(re.findall(r"^- \[(\d+)\] (.*)$", "\n".join(lines(7, of(found))), re.MULTILINE))

    def labels(cell):
        return ", ".join(notes[number] for number in re.findall(r"\[(\d+)\]", cell))

    setting = "4 threads, length 128, median of rounds"
    mine, base = text["NoNorm, relu"][-4:], text["LayerNorm, gelu"][-4:]
    assert labels(mine[0]) == labels(base[1]) == f"pytorch, {setting}"
    assert labels(mine[2]) == f"litert-int8, {setting}"
    assert labels(mine[3]) == f"litert-int8, {setting}, output of mobilebert-no-opt 45% away from float32"
    assert labels(base[2]) == labels(base[3]) == f"litert-int8, {setting}, output 45% away from float32"


def test_published_speed_ups_are_ratios_of_the_printed_latencies():
    for number, label, text in (
        (4, "MobileBERT", "5.5"),
        (4, "BERT\\_BASE", "1.0"),
        (4, "TinyBERT", "–"),
        (7, "NoNorm, relu", "3.1"),
    ):
        row = next(text for text in lines(number, {}) if text.startswith(f"| {label} ") and " published " in text)
        heads = next(text for text in lines(number, {}) if "Speed-up" in text and text.startswith("|"))
        assert (
            row.split(" | ")[heads.split(" | ").index(next(h for h in heads.split(" | ") if "Speed-up" in h))].rstrip(" |")
            == text
        )

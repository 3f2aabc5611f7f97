"""MobileBERT, end to end. `snakemake --cores 2` runs the study smoke; `--config study=cpu` another; `table_8` what a table lacks."""

from snakemake.utils import min_version

min_version("9.0")


report: "workflows/report/workflow.rst"


include: "workflows/rules/common.smk"


# Reads the verdicts, the page, the tables and the record of the MLflow store; writes nothing.
rule all:
    default_target: True
    input:
        f"{OUT}/check/passed",
        f"{OUT}/report/index.html",
        f"{OUT}/report/tables.md",
        f"{OUT}/track/result.json",


include: "workflows/rules/data.smk"
include: "workflows/rules/teacher.smk"
include: "workflows/rules/transfer.smk"
include: "workflows/rules/finetune.smk"
include: "workflows/rules/quantize.smk"
include: "workflows/rules/latency.smk"
include: "workflows/rules/report.smk"

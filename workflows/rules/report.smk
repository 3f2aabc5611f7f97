# `check` and `track` both run after the report, so a failed expectation still has its page. Neither
# waits for the other, so a broken MLflow store hides no verdict.


# Reads all records; writes tables, figures and the page.
rule report:
    input:
        needs("report"),
    output:
        f"{OUT}/report/result.json",
        report(
            f"{OUT}/report/index.html",
            caption="../report/page.rst",
            category="Results",
        ),
        report(
            f"{OUT}/report/tables.md",
            caption="../report/tables.rst",
            category="Results",
        ),
    log:
        f"{OUT}/logs/report.log",
    conda:
        ENVIRONMENT
    shell:
        program("report")


# Reads all records; writes a verdict for every expectation of the study, and fails if one does not
# hold.
rule check:
    input:
        needs("check"),
    output:
        touch(f"{OUT}/check/passed"),
    log:
        f"{OUT}/logs/check.log",
    priority: 1  # before track on one core
    conda:
        ENVIRONMENT
    shell:
        program("check")


# Reads all records; writes them to MLflow.
rule track:
    input:
        needs("track"),
        lambda wildcards: (
            [record("report")]
            if IS_VIEWED or not DEMAND.is_up_to_date("track", forced())
            else []
        ),
    output:
        f"{OUT}/track/result.json",
    log:
        f"{OUT}/logs/track.log",
    conda:
        ENVIRONMENT
    shell:
        program("track")


# Reads the records that a table's measured cells need; writes that table. Each table is a target.
for NUMBER in range(1, 10):

    rule:
        name:
            f"table_{NUMBER}"
        input:
            NEWER.name,  # newer than any output, so the table is written whenever it is asked for
            [record(key) for key in table_jobs(STUDY, GRAPH, NUMBER)],
        output:
            f"{OUT}/tables/table_{NUMBER}.md",
        log:
            f"{OUT}/logs/table_{NUMBER}.log",
        conda:
            ENVIRONMENT
        params:
            number=NUMBER,
        shell:
            program("table", "{params.number}")
            .replace("> {log:q} 2>&1", "> {output:q} 2> {log:q}")
            .replace("--threads {threads} ", "")

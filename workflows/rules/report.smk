# Records -> tables, page, MLflow and verdicts. `check` comes last, so that a failed expectation still has its report.
rule report:
    input:
        ancient(inputs_of("report")),
        marker_of("report"),
    output:
        f"{OUT}/report/result.json",
        f"{OUT}/report/index.html",
        f"{OUT}/report/tables.md",
    log:
        f"{OUT}/logs/report.log",
    conda:
        ENVIRONMENT
    shell:
        program("report")


rule track:
    input:
        ancient(inputs_of("track")),
        marker_of("track"),
    output:
        f"{OUT}/track/result.json",
    log:
        f"{OUT}/logs/track.log",
    conda:
        ENVIRONMENT
    shell:
        program("track")


rule check:
    input:
        ancient(inputs_of("check")),
        marker_of("check"),
    output:
        touch(f"{OUT}/check/passed"),
    log:
        f"{OUT}/logs/check.log",
    conda:
        ENVIRONMENT
    shell:
        program("check")


# One target a table: everything that its measured cells need, then the table alone.
for NUMBER in range(1, 10):

    rule:
        name:
            f"table_{NUMBER}"
        input:
            [record(key) for key in jobs.table_jobs(STUDY, GRAPH, NUMBER)],
        output:
            f"{OUT}/tables/table_{NUMBER}.md",
        log:
            f"{OUT}/logs/table_{NUMBER}.log",
        conda:
            ENVIRONMENT
        params:
            number=NUMBER,
        shell:
            program("table", "{params.number}").replace("> {log} 2>&1", "> {output} 2> {log}").replace("--threads {threads} ", "")


# What a stale record waits for: made when one is found, gone when the run is over.
rule stale:
    output:
        temp(f"{OUT}/.state/stale"),
    log:
        f"{OUT}/logs/stale.log",
    conda:
        ENVIRONMENT
    localrule: True
    shell:
        "touch {output} 2> {log}"

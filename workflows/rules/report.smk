# Records -> tables, page, verdicts and MLflow. `check` and `track` come after the report, neither after the other: a failed
# expectation still has its page, and an MLflow store that is out of order hides no verdict.
rule report:
    input:
        needs("report"),
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


rule check:
    input:
        needs("check"),
    output:
        touch(f"{OUT}/check/passed"),
    log:
        f"{OUT}/logs/check.log",
    conda:
        ENVIRONMENT
    priority: 1  # on one core before track
    shell:
        program("check")


rule track:
    input:
        needs("track"),
        lambda wildcards: [] if rests("track") else record("report"),
    output:
        f"{OUT}/track/result.json",
    log:
        f"{OUT}/logs/track.log",
    conda:
        ENVIRONMENT
    shell:
        program("track")


# One target a table: everything that its measured cells need, then the table alone.
for NUMBER in range(1, 10):

    rule:
        name:
            f"table_{NUMBER}"
        input:
            NEWER.name,  # printed whenever it is asked for
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
            program("table", "{params.number}").replace("> {log:q} 2>&1", "> {output:q} 2> {log:q}").replace("--threads {threads} ", "")

rule data:
    input:
        marker_of("data"),
    output:
        f"{OUT}/data/result.json",
    log:
        f"{OUT}/logs/data.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    shell:
        program("data")

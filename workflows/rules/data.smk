rule data:
    input:
        needs("data"),
    output:
        f"{OUT}/data/result.json",
    log:
        f"{OUT}/logs/data.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    shell:
        program("data")

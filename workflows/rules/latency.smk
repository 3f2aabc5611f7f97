# Paper section 4.5. All cores are reserved: a timing beside another job would be void.
rule latency:
    input:
        needs("latency"),
    output:
        f"{OUT}/latency/result.json",
    log:
        f"{OUT}/logs/latency.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    shell:
        program("latency")

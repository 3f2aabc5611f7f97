# Reads nothing but the study; writes latencies (paper section 4.5). It reserves all cores: a timing beside a job is void.
rule latency:
    input:
        needs("latency"),
    output:
        f"{OUT}/latency/result.json",
    log:
        f"{OUT}/logs/latency.log",
    conda:
        ENVIRONMENT
    threads: ALL_CORES
    shell:
        program("latency")

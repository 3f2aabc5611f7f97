# Reads the study's data source; writes tables that were checked, the tokenizer and the tokenized corpus.
rule data:
    input:
        needs("data"),
    output:
        f"{OUT}/data/result.json",
    log:
        f"{OUT}/logs/data.log",
    conda:
        ENVIRONMENT
    threads: ALL_CORES
    shell:
        program("data")

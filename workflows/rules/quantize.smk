# Paper section 4.6.3: int8, scored again.
rule quantize:
    input:
        needs("quantize"),
    output:
        f"{OUT}/quantize/{{model}}/{{task}}/result.json",
    log:
        f"{OUT}/logs/quantize/{{model}}/{{task}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    shell:
        program("quantize", "{wildcards.model}/{wildcards.task}")

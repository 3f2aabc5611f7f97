# Reads a fine-tuned model and its task's tables; writes its int8 model and that model's scores (paper section 4.6.3).
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
    resources:
        gpu=GPUS * (AWARE in STUDY.quantize_also),  # which trains
    shell:
        program("quantize", "{wildcards.model}/{wildcards.task}")

# Reads the corpus; writes a model pre-trained by itself: the teacher, BERT_BASE, the search rows (paper section 4.2).
rule pretrain:
    input:
        needs("pretrain"),
    output:
        f"{OUT}/pretrain/{{model}}/result.json",
    log:
        f"{OUT}/logs/pretrain/{{model}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPUS,
    shell:
        program("pretrain", "{wildcards.model}")


# Reads a published checkpoint; writes its weights as if they were pre-trained here.
rule checkpoint:
    input:
        needs("checkpoint"),
    output:
        f"{OUT}/checkpoint/{{model}}/result.json",
    log:
        f"{OUT}/logs/checkpoint/{{model}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    shell:
        program("checkpoint", "{wildcards.model}")

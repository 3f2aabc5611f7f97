# Paper section 4.2: the teacher, BERT_BASE, the search rows; or a published checkpoint in place of pre-training.
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

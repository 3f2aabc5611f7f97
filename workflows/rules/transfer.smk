# Paper sections 3.3 to 3.5: knowledge transfer, then pre-training distillation.
rule transfer:
    input:
        needs("transfer"),
    output:
        f"{OUT}/transfer/{{model}}/result.json",
    log:
        f"{OUT}/logs/transfer/{{model}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    priority: 1  # the distillation that starts first trains the students that are ready, one teacher for all: share_teacher
    resources:
        gpu=GPUS,
    shell:
        program("transfer", "{wildcards.model}")


rule distill:
    input:
        needs("distill"),
    output:
        f"{OUT}/distill/{{model}}/result.json",
    log:
        f"{OUT}/logs/distill/{{model}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPUS,
    shell:
        program("distill", "{wildcards.model}")

# Reads the corpus and the teacher; writes a student that has learnt the teacher's layers (paper sections 3.3 to 3.5).
rule transfer:
    input:
        needs("transfer"),
    output:
        f"{OUT}/transfer/{{model}}/result.json",
    log:
        f"{OUT}/logs/transfer/{{model}}.log",
    # Transfers first: the first distillation trains every student that is ready, with one teacher (share_teacher).
    priority: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPUS,
    shell:
        program("transfer", "{wildcards.model}")


# Reads the corpus, the teacher and the transferred student; writes the distilled student (paper section 3.3).
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


# Reads a student, its teacher and a held-out text; writes their attention on it (paper appendix).
rule attention:
    input:
        needs("attention"),
    output:
        f"{OUT}/attention/{{model}}/result.json",
    log:
        f"{OUT}/logs/attention/{{model}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    shell:
        program("attention", "{wildcards.model}")

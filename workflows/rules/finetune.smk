# Paper sections 4.3 and 4.4: GLUE and SQuAD, scored by the job that trains.
rule finetune:
    input:
        needs("finetune"),
    output:
        f"{OUT}/finetune/{{model}}/{{task}}/result.json",
    log:
        f"{OUT}/logs/finetune/{{model}}/{{task}}.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=GPUS,
    shell:
        program("finetune", "{wildcards.model}/{wildcards.task}")

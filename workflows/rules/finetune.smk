# Reads a pre-trained model and a task's tables; writes the fine-tuned model and its scores (paper sections 4.3 and 4.4).
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

"""Compare training steps on one GPU with transformers and plain PyTorch.

The report has the tokens/s, MFU, memory and data wait of each version.

python tests/bench/gpu_training.py student --out student.json
python tests/bench/gpu_training.py student --batch 1024 --out student-131k.json
python tests/bench/gpu_training.py teacher --out teacher.json
python tests/bench/gpu_training.py transfer --batch 128 --out transfer.json
python tests/bench/gpu_training.py distill --batch 128 --out distill.json

All versions train in bf16 autocast with AdamW, without dropout. The first steps of a
round (`gpu.SETTLED`), which compile and record graphs, are left out.
"""

from __future__ import annotations

import gpu
import plain
import torch

WHATS = ("student", "teacher", "transfer", "distill")


def model_of(preset: str, options, fused: bool = False):
    from mobilebert import MobileBertConfig, MobileBertForPreTraining
    from mobilebert.modeling.kernels import fused as kernel

    fields = gpu.widths(options.tiny)
    if fields and preset == "ib-bert-large":
        fields |= {"intra_bottleneck_size": 64}
    torch.manual_seed(0)
    model = MobileBertForPreTraining(MobileBertConfig.from_preset(preset, max_position_embeddings=512, **fields))
    model.eval().to(options.device)  # eval(): no dropout; gradients flow all the same
    if fused:
        kernel.enable(model)
    return model


def transformers_model(options):
    from transformers import MobileBertConfig, MobileBertForPreTraining

    from mobilebert import MobileBertConfig as Ours

    fields = Ours.from_preset("mobilebert", **gpu.widths(options.tiny)).to_dict()
    fields = {key: value for key, value in fields.items() if key not in ("model_type", "architectures")}
    config = MobileBertConfig(**fields, attn_implementation="sdpa")
    return MobileBertForPreTraining(config).eval().to(options.device)


def task_of(loss, batch, options, execution, **more):
    from mobilebert.data.segment_pairs import predictions
    from mobilebert.training.plan import TrainingPlan

    loop = {key: value for key, value in execution.items() if key != "fused"}
    most = int(predictions(options.length))
    return TrainingPlan(1, batch, loss, lambda step: 1.0, 0, precision="bf16", predictions=most, **loop, **more)


def optimizer_of(model, **options):
    from mobilebert.training import optim

    return optim.make(model, "adamw", 1e-5, 0.01, **options)


# Ways in which the suite runs the same step; `fused` concerns the model, the others the loop.
EXECUTIONS = {
    "ours, eager": {},
    "ours, compiled blocks": {"compile": True},
    "ours, graph": {"graph": True},
    "ours, compiled blocks, graph": {"compile": True, "graph": True},
    "ours, fused, compiled blocks, graph": {"fused": True, "compile": True, "graph": True},
}


def pretraining(preset: str, batch, options, others: dict) -> None:
    """Measure masked LM and next-sentence prediction of one model."""
    from mobilebert.modeling.cost import cost
    from mobilebert.pretraining import objective as pretraining

    def version(execution):
        model = model_of(preset, options, "fused" in execution)
        task = task_of(lambda batch, step: pretraining.loss(model, batch), batch, options, execution)
        return gpu.ours(model, task, optimizer_of(model), options.device)

    versions = dict(others)
    for name, execution in EXECUTIONS.items():
        if preset == "mobilebert" or "fused" not in execution:  # the teacher has no feed-forward stack
            versions[name] = lambda execution=execution: version(execution)
    flops = cost(model_of(preset, options).config.to_dict(), options.length).training_flops_per_token
    gpu.measure(versions, options, dict.fromkeys(versions, flops))


def student(batch, options) -> None:
    def theirs(compiled: bool):
        model = transformers_model(options)
        if compiled:
            model.compile()
        return gpu.peer(lambda one: plain.pretraining(model, one), model, batch, options.device)

    peers = {
        "transformers, sdpa": lambda: theirs(False),
        "transformers, sdpa, torch.compile": lambda: theirs(True),
    }
    pretraining("mobilebert", batch, options, peers)


def teacher(batch, options) -> None:
    def theirs():
        model = model_of("ib-bert-large", options)
        return gpu.peer(lambda one: plain.pretraining(model, one), model, batch, options.device)

    pretraining("ib-bert-large", batch, options, {"plain": theirs})


def transfer(batch, options) -> None:
    """Measure PKT's stages of the first, the middle and the last layer."""
    from mobilebert.distillation.transfer import Transfer, layer_of
    from mobilebert.study.stage_config import LayerwiseConfig

    guide = model_of("ib-bert-large", options).requires_grad_(False)
    layers = guide.config.num_hidden_layers

    def version(layer: int, execution):
        model = model_of("mobilebert", options, "fused" in execution)
        settings = {"strategy": "pkt", "recipe": "paper", "losses": ("fmt", "at"), "factors": None, "lower_layers": 0.1}
        config = LayerwiseConfig.model_construct(**settings, steps=layers)  # one step a layer, so step `layer` is its stage
        transfer = Transfer(model, guide, config)
        optimizer = optimizer_of(model, group=layer_of)
        prepare = transfer.prepare(optimizer)
        more = {"prepare": lambda step: prepare(layer), "stage": lambda step: layer}
        task = task_of(lambda one, step: transfer.loss(one, layer), batch, options, execution, **more)
        return gpu.ours(model, task, optimizer, options.device)

    def theirs(layer: int):
        model = model_of("mobilebert", options)
        return gpu.peer(lambda one: plain.transfer(model, guide, one, layer), model, batch, options.device)

    versions = {}
    for layer in sorted({0, layers // 2 - 1, layers - 1}):
        versions[f"layer {layer + 1}: plain"] = lambda layer=layer: theirs(layer)
        for name, execution in EXECUTIONS.items():
            versions[f"layer {layer + 1}: {name}"] = lambda layer=layer, execution=execution: version(layer, execution)
    gpu.measure(versions, options)


def distill(batch, options) -> None:
    from mobilebert.distillation.objective import distillation_loss as loss
    from mobilebert.distillation.objective import teacher_guide as guide
    from mobilebert.study.budget import flops_per_token
    from mobilebert.study.stage_config import DistillConfig

    wise = model_of("ib-bert-large", options).requires_grad_(False)
    settings = DistillConfig.model_construct(recipe="paper", alpha=0.5, temperature=1.0)

    def version(execution):
        model = model_of("mobilebert", options, "fused" in execution)

        def losses(one, step):
            return loss(model, guide(wise, one, settings, None), one, settings, None)

        return gpu.ours(model, task_of(losses, batch, options, execution), optimizer_of(model), options.device)

    def theirs():
        model = model_of("mobilebert", options)
        return gpu.peer(lambda one: plain.distillation(model, wise, one), model, batch, options.device)

    versions = {"plain": theirs}
    versions |= {name: lambda execution=execution: version(execution) for name, execution in EXECUTIONS.items()}
    architectures = model_of("mobilebert", options).config.to_dict(), wise.config.to_dict()
    gpu.measure(versions, options, dict.fromkeys(versions, flops_per_token(*architectures, options.length)))


def main() -> None:
    from mobilebert.pretraining import objective as pretraining

    options = gpu.arguments(__doc__, WHATS)
    vocab_size = gpu.widths(options.tiny).get("vocab_size", 30522)
    with gpu.corpus(vocab_size) as folder:
        batch = pretraining.batches(folder, "train", options.length, options.batch, seed=0)
        {"student": student, "teacher": teacher, "transfer": transfer, "distill": distill}[options.what](batch, options)


if __name__ == "__main__":
    main()

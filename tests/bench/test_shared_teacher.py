"""Compare three students that share one teacher pass with three that do not.

The verdict is a ratio within one run, of processor seconds on one thread.
"""

import torch

STUDENTS, STEPS, BATCH, LENGTH, MASKED, ROUNDS = 3, 3, 8, 64, 77, 4
WIDTHS = {"num_hidden_layers": 4, "embedding_size": 32, "hidden_size": 128, "vocab_size": 2000, "max_position_embeddings": LENGTH}
NARROW = {"intra_bottleneck_size": 32, "intermediate_size": 128, "classifier_activation": False}
WIDE = {
    "intra_bottleneck_size": 512,
    "intermediate_size": 2048,
    "num_feedforward_networks": 1,
    "key_query_shared_bottleneck": False,
    "normalization_type": "layer_norm",
    "hidden_act": "gelu",
}


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "input_ids": torch.randint(5, 2000, (BATCH, LENGTH), generator=generator),
        "token_type_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
        "masked_positions": torch.randperm(BATCH * LENGTH, generator=generator)[:MASKED].sort().values,
        "masked_labels": torch.randint(5, 2000, (MASKED,), generator=generator),
        "next_sentence_label": torch.randint(2, (BATCH,), generator=generator),
    }


def measure(rounds, folder, prepare):
    """Return the seconds of training STUDENTS alone, and of training them together."""
    from mobilebert.distillation.shared_teacher import train_together
    from mobilebert.jobs.context import JobContext
    from mobilebert.study.job import Job

    def contexts(version, index):
        for name in range(STUDENTS):
            found = JobContext(Job("distill", str(name), {}, (), str(name) * 64), "study", folder / version / str(index), {})
            found.state.mkdir(parents=True)
            yield found

    def shared(index):
        first, *others = contexts("shared", index)
        return train_together(first, others, prepare, "cpu")

    def alone(index):
        first, *_ = [train_together(one, [], prepare, "cpu") for one in contexts("alone", index)]
        return first

    samples, learnt = rounds.run({"shared": shared, "alone": alone}, ROUNDS)
    for mine, theirs in zip(learnt["shared"][-1].parameters(), learnt["alone"][-1].parameters(), strict=True):
        assert torch.equal(mine, theirs)  # the same work
    return samples


def model(seed, fields):
    from mobilebert import MobileBertConfig, MobileBertForPreTraining

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return MobileBertForPreTraining(MobileBertConfig(**WIDTHS, **fields)).eval()


def test_three_distillations_that_share_a_teacher_pass_are_faster(rounds, tmp_path):
    """The teacher's pass takes at least ten times the FLOPs of a student's step. If time followed
    FLOPs, the ratio would be 3 x (10 + 1) / (10 + 3 x 1) = 2.5. A step of small matrices and its
    optimizer take longer than that."""
    from mobilebert import MobileBertConfig
    from mobilebert.distillation.objective import distillation_loss, teacher_guide
    from mobilebert.modeling.cost import cost
    from mobilebert.study.stage_config import DistillConfig
    from mobilebert.training import optim
    from mobilebert.training.plan import TrainingPlan

    settings = DistillConfig.model_construct(alpha=0.5, temperature=1.0, recipe="paper")
    teacher = model(0, WIDE).requires_grad_(False)
    flops = cost(teacher.config.to_dict(), LENGTH).encoder_flops / LENGTH
    step = cost(MobileBertConfig(**WIDTHS, **NARROW).to_dict(), LENGTH).training_flops_per_token
    assert flops > 10 * step

    def prepare(run, shared):
        student = model(int(run.job.name), NARROW)

        def losses_of(batch, step):
            theirs = shared.get(run.job.id, step, lambda: teacher_guide(teacher, batch, settings, None))
            return distillation_loss(student, theirs, batch, settings, None)

        return student, optim.make(student, "lamb", 1e-3, 0.01), TrainingPlan(STEPS, batch, losses_of, lambda step: 1.0, 0)

    rounds.judge(measure(rounds, tmp_path, prepare), "alone", "shared", 1.4)


def test_three_transfers_that_share_a_teacher_pass_are_faster(rounds, tmp_path):
    """The students learn by PKT with one step a layer. The last student compares no attention maps,
    so the taught block runs twice. With 4 layers the teacher runs 3 x (1 + 2 + 3 + 4) blocks for
    three students alone, and 2 + 3 + 4 + 5 for the shared pass."""
    from mobilebert.distillation.transfer import Transfer, layer_of
    from mobilebert.study.stage_config import LayerwiseConfig
    from mobilebert.training import optim
    from mobilebert.training.plan import TrainingPlan

    layers = WIDTHS["num_hidden_layers"]
    teacher = model(0, WIDE).requires_grad_(False)

    def prepare(run, shared):
        student = model(int(run.job.name), NARROW)
        settings = {"strategy": "pkt", "recipe": "paper", "factors": None, "lower_layers": 0.1, "steps": layers}
        settings["losses"] = ("fmt",) if int(run.job.name) == STUDENTS - 1 else ("fmt", "at")
        transfer = Transfer(student, teacher, LayerwiseConfig.model_construct(**settings))
        optimizer = optim.make(student, "lamb", 1e-3, 0.01, group=layer_of)

        def losses_of(batch, step):
            return transfer.loss(batch, step, lambda make: shared.get(run.job.id, step, make))

        return student, optimizer, TrainingPlan(layers, batch, losses_of, transfer.rate, 0, transfer.prepare(optimizer))

    rounds.judge(measure(rounds, tmp_path, prepare), "alone", "shared", 1.2)

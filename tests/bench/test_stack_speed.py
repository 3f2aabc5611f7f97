"""Compare ten fine-tuning trials as a stack with the same ten one after the other.

The verdict is a ratio within one run.
"""

import torch

RUNS, STEPS, ROUNDS = 10, 3, 3


def test_ten_trials_of_a_deep_and_narrow_model_are_faster_as_a_stack(rounds):
    """The 24 layers are so narrow that the number of operators decides the time of a step, as the
    number of launches does on a large GPU.

    The usual ratio is about 2, with dropout drawn for each trial; 1.4 leaves room for noise. If the
    products themselves take the time, as with a large vocabulary on a CPU, the stack is slower.
    """
    from mobilebert import MobileBertConfig, MobileBertForSequenceClassification
    from mobilebert.finetuning.stacked.model import Feed, optimizer_of
    from mobilebert.finetuning.stacked.train import Member, losses, stack_of
    from mobilebert.training import optim
    from mobilebert.training.plan import TrainingPlan

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "embedding_size": 8, "intra_bottleneck_size": 16, "intermediate_size": 20, "vocab_size": 50}
    model = MobileBertForSequenceClassification(MobileBertConfig.from_preset("mobilebert", **sizes, num_labels=2)).train()
    ids = torch.randint(5, 50, (4, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    batch["labels"] = torch.tensor([0, 1, 0, 1])

    def loss(batch, step=0):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return {"loss": torch.nn.functional.cross_entropy(model(**inputs).logits, batch["labels"])}

    task = TrainingPlan(STEPS, lambda step: batch, loss, lambda step: 1.0, seed=0)
    stack = stack_of([model] * RUNS, [Member(str(index), task, 1e-4) for index in range(RUNS)], "cola", "cpu")
    together, alone = optimizer_of(stack, 0.01), optim.make(model, "adamw", 1e-4, 0.01)
    for group in together.param_groups:
        group["lr"] = torch.full((RUNS,), 1e-4)
    fed = Feed(batch, [4] * RUNS, [16] * RUNS)

    def one_after_the_other(_):
        for _ in range(STEPS * RUNS):
            loss(batch)["loss"].backward()
            alone.step()
            alone.zero_grad()

    def at_once(_):
        for _ in range(STEPS):
            losses("cola", stack(fed, range(RUNS)), fed).sum().backward()
            together.step()
            together.zero_grad()

    samples, _ = rounds.run({"one after the other": one_after_the_other, "at once": at_once}, ROUNDS)
    rounds.judge(samples, "one after the other", "at once", 1.4)

"""The compute of a student and its teacher, against a walk through every step of the schedule."""

import pytest

from mobilebert import paper
from mobilebert.modeling.cost import MASK_RATE, cost
from mobilebert.study.architecture import architecture
from mobilebert.study.budget import scratch_steps, student_flops
from mobilebert.study.schema import Study


def study(recipe="paper", lower_layers=0.1, steps=50):
    common = {"batch_size": 4, "length": 32, "warmup_steps": 1}
    return Study.model_validate(
        {
            "schema": 1,
            "description": "d",
            "recipe": recipe,
            "scale": {"layer_divisor": 6},
            "pretrain": {"steps": 40, **common},
            "transfer": {**common, "steps": steps, "lower_layers": lower_layers, "batch_size": 8},
            "distill": {"steps": 30, **common},
        }
    )


def walked(study, name):
    """Return the FLOPs of all steps: whole forward passes by the layer, twice as much backward."""
    row = paper.models()[name]
    student, teacher = (architecture(study, model) for model in (name, row.teacher))
    mine, theirs = cost(student, 32), cost(teacher, 32)
    layers = student["num_hidden_layers"]
    total = 40 * 4 * 32 * theirs.training_flops_per_token
    teaching = theirs.encoder_flops / 32 + MASK_RATE * theirs.mlm_flops_per_prediction
    total += (30 + 50 * (row.strategy == "akt")) * 4 * 32 * (mine.training_flops_per_token + teaching)
    for step in range(50 if row.strategy in ("pkt", "jkt") else 0):
        # 50 steps over 4 layers: 12 each, and the remainder for the last layer.
        layer = min(step // 12, 3) if row.strategy == "pkt" else 3
        learning = 1 if row.strategy == "pkt" and not study.transfer.lower_layers else layer + 1
        guide = layers if study.recipe == "released" and "fmt" in row.losses else layer + 1
        total += 8 * ((layer + 1 + 2 * learning) * mine.encoder_flops + guide * theirs.encoder_flops) / layers
    return total


@pytest.mark.parametrize("name", ["mobilebert", "mobilebert-jkt", "mobilebert-akt", "mobilebert-pd"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("lower", [0.1, 0.0])
def test_flops_are_those_of_every_step(name, recipe, lower):
    this, row = study(recipe, lower), paper.models()[name]
    architectures = [architecture(this, model) for model in (name, row.teacher)]
    flops = student_flops(this, row, *architectures)
    assert flops == pytest.approx(walked(this, name), rel=1e-9)
    each = cost(architectures[0], 32).training_flops_per_token * 4 * 32
    assert scratch_steps(this, row, *architectures, "compute") == round(flops / each)
    assert scratch_steps(this, row, *architectures, "steps") == (30 if name == "mobilebert-pd" else 80)


def test_a_budget_is_that_of_a_taught_student():
    models = paper.models()
    for name, row in models.items():
        assert row.settings == ("distill" if row.budget_of else row.schedule)
        if row.budget_of:
            student = models[row.budget_of]
            assert student.teacher, name
            assert (row.preset, row.overrides) == (student.preset, student.overrides), name
            assert row.strategy == "none", "a transfer has steps of its own"


def test_labels_count_the_steps_that_were_run():
    this = study()
    share = 80 * 4 * 32 / (500_000 * 4096 * 512)
    assert this.schedule_labels("distill", 80) == [f"scaled: distill sees {share:.1e} of the paper's tokens"]
    assert this.schedule_labels("distill") == this.schedule_labels("distill", 30)

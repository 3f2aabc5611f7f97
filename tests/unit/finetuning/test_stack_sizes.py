"""How many trials a stack holds."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilebert.finetuning.search import Trial, grid, stacks
from mobilebert.finetuning.stacked import train as together
from mobilebert.finetuning.trials import runs_at_once
from mobilebert.modeling.cost import cost
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.study.recipe import Finetune
from mobilebert.study.stage_config import FinetuneConfig

torch.set_num_threads(1)


def test_memory_of_a_stack_by_hand():
    """BERT of two layers of width 4, 10 words: 20 bytes a weight, a token as `cost` counts it."""
    config = {
        "model_type": "bert", "num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 16, "num_attention_heads": 2,
        "vocab_size": 10, "max_position_embeddings": 8, "type_vocab_size": 2, "hidden_act": "gelu",
    }  # fmt: skip
    known = cost(config, 8)
    each = 20 * known.parameters + 3 * 8 * known.saved_bytes_per_token  # three sequences of eight tokens
    for count in (1, 2, 7):
        assert together.most(config, 3, 8, math.ceil(count * each / 0.8)) == count
        assert together.most(config, 3, 8, math.ceil((count + 1) * each / 0.8) - 2) == count
    assert together.most(config, 3, 8, 0) == 1
    assert together.most({"model_type": "auto", "vocab_size": 10}, 3, 8, 10**12) == 1


def test_a_gpu_takes_no_more_than_its_memory_holds(monkeypatch):
    """The search's largest batch counts; a study's number is an upper bound; 1 asks no GPU."""
    graph = build_graph(load_study("paper"))
    setting = graph["finetune/mobilebert/mnli"].settings(FinetuneConfig)
    study = load_study("paper").model_copy(update={"finetune": Finetune(together=100)})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 2**30))
    found = runs_at_once(study, setting, "cuda")
    assert found == together.most(setting.architecture, 48, 128, 80 * 2**30)
    assert 1 < found < 100
    assert runs_at_once(study, setting, "cpu") == 100
    few = study.model_copy(update={"finetune": Finetune(together=2)})
    assert runs_at_once(few, setting, "cuda") == 2
    monkeypatch.delattr(torch.cuda, "mem_get_info")
    assert runs_at_once(load_study("paper"), setting, "cuda") == 1


def test_the_size_of_stacks_is_not_part_of_the_fingerprint():
    def prints(**changes):
        study = load_study("paper").model_copy(update={"finetune": Finetune(**changes)})
        return {key: job.fingerprint for key, job in build_graph(study).items()}

    assert prints() == prints(together=10) != prints(weight_decay=0.1)


def test_the_papers_grid_is_27_stacks_of_ten_rates():
    config = FinetuneConfig.model_construct(search="paper", halving=False)
    found = stacks([Trial(**setting, seed=1, role="search") for setting in grid(config)], 10)
    assert [len(group) for group in found] == [10] * 27
    assert all(len({trial.learning_rate for trial in group}) == 10 for group in found)


@given(
    st.lists(st.tuples(st.integers(1, 2), st.floats(0.1, 1), st.integers(1, 3), st.integers(0, 9)), unique=True, max_size=30),
    st.integers(1, 7),
)
def test_stacks_hold_every_trial_once_and_are_even(values, most):
    trials = [Trial(size, rate, epochs, seed) for size, rate, epochs, seed in values]
    found = stacks(trials, most)
    assert sorted(map(repr, (trial for group in found for trial in group))) == sorted(map(repr, trials))
    sizes: dict = {}
    for group in found:
        assert len({(trial.batch_size, trial.epochs, trial.part) for trial in group}) == 1
        sizes.setdefault((group[0].batch_size, group[0].epochs), []).append(len(group))
    for own in sizes.values():
        assert 1 <= max(own) <= most
        assert max(own) - min(own) <= 1
        assert len(own) == math.ceil(sum(own) / most)

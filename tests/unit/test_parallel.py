"""One process is a world of its own; what runs in one process alone is refused. Two processes: test_training_programs.py."""

from types import SimpleNamespace

import pytest
import torch

from mobilebert.errors import UserError
from mobilebert.training import parallel


def test_a_single_process_leads_and_keeps_its_numbers():
    group, tensors = parallel.world(), [torch.arange(3.0), torch.ones(2, 2)]
    group.sum(tensors)
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert torch.equal(tensors[0], torch.arange(3.0))
    assert group.agree(2.5) == 2.5


@pytest.mark.parametrize("stage", ["data", "finetune", "report"])
def test_what_runs_in_one_process_is_refused(stage):
    with pytest.raises(UserError, match=f"^{stage}: runs in one process; torchrun is for pretrain, transfer, distill"):
        parallel.execute(SimpleNamespace(stage=stage), "smoke", None, {}, None, "cpu")

"""The saved state of a job: it loads unchanged, and any other file is refused by name."""

import errno
import json
import os
import random
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel

from mobilebert.training import checkpoint, optim
from mobilebert.util.errors import UserError


class Toy(nn.Module):
    """A model with a tied weight, a buffer, and a linear layer of a chosen shape."""

    def __init__(self, seed=0, inputs=3, outputs=4, extra=False):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.embedding.weight
        self.dense = nn.Linear(inputs, outputs)
        self.register_buffer("count", torch.full((2,), float(seed)))
        if extra:
            self.more = nn.Linear(2, 2)


def trained(seed=0, steps=3, **form):
    """Return a model and its optimizer after some steps. `dense.bias` has no gradient yet, like a
    layer that was not reached."""
    model = Toy(seed, **form)
    optimizer = optim.make(model, "lamb", 0.1, 0.01)
    for step in range(steps):
        torch.manual_seed(step)
        for name, parameter in model.named_parameters():
            parameter.grad = None if name == "dense.bias" else torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


def contents(model, optimizer):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {
        f"{key}.{name}": value.clone()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return weights | moments


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "train.safetensors"
    model, optimizer = trained(seed=1)
    checkpoint.save(path, model, optimizer, 3, "mine")
    return path, contents(model, optimizer)


def test_round_trip(saved):
    path, expected = saved
    model, optimizer = trained(seed=2, steps=0)
    assert not same(contents(model, optimizer), expected)
    assert checkpoint.load(path, model, optimizer, "mine") == (3, 0.0)
    assert same(contents(model, optimizer), expected)
    assert model.decoder.weight is model.embedding.weight
    assert model.dense.bias not in optimizer.state


def test_a_loaded_optimizer_continues_as_the_saved_one(saved):
    path, _ = saved
    results = []
    for model, optimizer in (trained(seed=1), trained(seed=2, steps=0)):
        if results:
            checkpoint.load(path, model, optimizer, "mine")
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.3)
        optimizer.step()
        results.append(contents(model, optimizer))
    assert same(*results)


def test_no_file_is_step_zero(tmp_path):
    model, optimizer = trained(steps=0)
    before = contents(model, optimizer)
    assert checkpoint.load(tmp_path / "train.safetensors", model, optimizer, "mine") == (0, 0.0)
    assert same(contents(model, optimizer), before)


def test_a_tied_weight_is_stored_once(saved):
    path, _ = saved
    names = {name for name in load_file(path) if name.startswith("model.")}
    assert names == {"model.embedding.weight", "model.decoder.bias", "model.dense.weight", "model.dense.bias", "model.count"}


def refused(path, fingerprint="mine", match=None, **form):
    model, optimizer = trained(seed=2, steps=0, **form)
    before = contents(model, optimizer)
    with pytest.raises(UserError, match=match) as caught:
        checkpoint.load(path, model, optimizer, fingerprint)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(contents(model, optimizer), before)  # nothing of it was loaded


def test_the_state_of_another_job_is_refused(saved):
    refused(saved[0], fingerprint="theirs", match="another run")


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({"extra": True}, id="a layer more"),
        pytest.param({"inputs": 7}, id="another width"),
        pytest.param({"outputs": 2}, id="fewer outputs"),
    ],
)
def test_another_architecture_is_refused(saved, form):
    refused(saved[0], match="architecture", **form)


def test_a_width_that_would_broadcast_is_refused(tmp_path):
    """(4, 1) could be copied into (4, 3) by broadcasting, but is another model's weight."""
    path = tmp_path / "train.safetensors"
    checkpoint.save(path, *trained(seed=1, inputs=1), 3, "mine")
    refused(path, match="architecture", inputs=3)


def test_damaged_files_are_refused(saved):
    path, _ = saved
    whole, rng = path.read_bytes(), random.Random(0)
    header = int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, 8 + header - 1, 8 + header, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]
    for damaged in [whole[:cut] for cut in cuts] + [b"\0" * len(whole), b"\xff" * 100, whole + b"x", b"not a state"]:
        path.write_bytes(damaged)
        refused(path, match="damaged")


def test_one_flipped_bit_is_refused_wherever_it_is(saved):
    path, _ = saved
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    facts = whole.index(b"__metadata__")
    places = [rng.randrange(8), *rng.sample(range(8, header), 40), *rng.sample(range(header, len(whole)), 20)]
    for place in [*places, *(whole.index(text, facts) + len(text) + 3 for text in (b'"step"', b'"seconds"', b'"crc32"'))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused(path)


def test_a_header_without_our_metadata_is_refused(saved):
    path, _ = saved
    body = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body)
    refused(path, match="damaged state")


def test_saving_leaves_one_file(saved):
    path, _ = saved
    checkpoint.save(path, *trained(seed=3), 4, "mine")
    assert [file.name for file in path.parent.iterdir()] == ["train.safetensors"]


def test_a_model_that_cannot_be_written_is_a_one_line_error(tmp_path):
    """A file size limit stands in for a full disk; safetensors raises an error of its own."""
    pid = os.fork()
    if not pid:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            model = BertModel(BertConfig(vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            with pytest.raises(UserError, match=r"model: the model cannot be written \(.*\)$"):
                checkpoint.save_pretrained(model, tmp_path / "model")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_save_that_fails_leaves_the_old_file(saved, monkeypatch, moment):
    path, expected = saved

    def half(tensors, part, facts):
        part.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    def no_sync(descriptor):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        if moment == "while writing":
            patch.setattr(checkpoint, "save_file", half)
        else:
            patch.setattr(os, "fsync", no_sync)
        with pytest.raises(UserError, match=r"state after step 4 cannot be written .*(No space|Input/output)") as caught:
            checkpoint.save(path, *trained(seed=3), 4, "mine")
    assert "\n" not in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == ["train.safetensors"]
    model, optimizer = trained(seed=2, steps=0)
    assert checkpoint.load(path, model, optimizer, "mine") == (3, 0.0)
    assert same(contents(model, optimizer), expected)
    checkpoint.save(path, *trained(seed=3), 5, "mine")  # files of the failed save do not matter
    assert checkpoint.load(path, model, optimizer, "mine") == (5, 0.0)
    assert [file.name for file in path.parent.iterdir()] == ["train.safetensors"]

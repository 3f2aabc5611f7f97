"""Hooks, tracers and function transforms work on our models as on transformers'."""

import pytest
import torch
from family import batch, close
from peers import MODES, PARTS, both, first
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as every_module

from mobilebert import fold

OURS = {"intermediate_act_fn": "activation", "transform_act_fn": "activation"}  # transformers' module names -> ours
modes = pytest.mark.parametrize("mode", MODES)


def names(model) -> dict[torch.nn.Module, str]:
    """Return each module's name; names that differ in transformers become ours."""
    found = {}
    for name, part in model.named_modules():
        *path, last = name.split(".")
        found[part] = ".".join([*path, OURS.get(last, last)])
    return found


def heard(model, inputs, everywhere: bool, mode: str) -> dict[str, tuple[list, list]]:
    """Return module name -> the tensors that its hooks kept, and copies from the call's time."""
    kept, known = {}, names(model)

    def keep(module, tensors):
        tensors = [x for x in (tensors if isinstance(tensors, tuple) else (tensors,)) if torch.is_tensor(x)]
        mine, copies = kept.setdefault(known.get(module), ([], []))
        mine += tensors
        copies += [x.clone() for x in tensors]

    def after(module, arguments, output):
        keep(module, output)

    if everywhere:
        handles = [every_module.register_module_forward_pre_hook(keep), every_module.register_module_forward_hook(after)]
    else:
        handles = [part.register_forward_pre_hook(keep) for part in known]
        handles += [part.register_forward_hook(after) for part in known]
    with MODES[mode]():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return kept


@modes
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(("head", "layout"), [("ForPreTraining", {}), ("ForSequenceClassification", {"use_bottleneck": False})])
def test_hooks_on_every_module_get_and_keep_transformers_tensors(head, layout, everywhere, mode):
    layout = layout and layout | {"key_query_shared_bottleneck": False}
    ours, theirs = both(head, **layout)
    inputs = batch(head, True)
    inputs.pop("token_type_ids")  # their hooks would see slices of the tables
    mine, peer = (heard(model, inputs, everywhere, mode) for model in (ours, theirs))
    peer.pop(None, None)  # transformers' losses are modules
    assert set(peer) <= set(mine)
    for name, (tensors, copies) in mine.items():
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True)), name
    for name in peer:
        if not name.endswith(("embeddings", "LayerNorm", "self", "dense", "activation", "dropout", "classifier", "cls")):
            continue  # the containers' arguments differ
        close(mine[name][0][-1].reshape(-1), peer[name][0][-1].reshape(-1), 1e-4)


@pytest.mark.parametrize("kind", ["register_forward_pre_hook", "register_forward_hook"])
@modes
@pytest.mark.parametrize("path", PARTS)
def test_one_hook_alone_keeps_its_tensor(path, mode, kind):
    model, _ = both("Model")
    kept = []

    def keep(module, arguments, output=None):
        kept.append((arguments[0], arguments[0].clone()) if output is None else (output, output.clone()))

    getattr(model.get_submodule(path), kind)(keep)
    with MODES[mode]():
        found = model(**batch("Model", True)).last_hidden_state
    assert len(kept) == 1
    assert torch.equal(*kept[0])
    with torch.no_grad():
        close(found, both("Model")[0](**batch("Model", True)).last_hidden_state, 1e-6)


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("path", [*PARTS, None])
def test_backward_hooks_hear_the_gradients_of_transformers_modules(path, kind):
    found = []
    for model in both("ForMaskedLM"):
        seen, known = [], {name: part for part, name in names(model).items()}
        called = [name for name in known if name.endswith(("dense", "activation")) and not name.endswith("predictions.dense")]

        def hear(module, *gradients, seen=seen):
            seen.extend(x for x in gradients[-1] if x is not None)

        for name in [f"mobilebert.{path}"] if path else called:
            getattr(known[name], kind)(hear)
        model(**batch("ForMaskedLM", True)).loss.backward()
        found.append(seen)
    assert len(found[0]) == len(found[1]) > 0
    for mine, peer in zip(*found, strict=True):
        close(mine, peer)


def test_retained_gradients_are_those_of_transformers_tensors():
    paths = ("mobilebert.encoder.layer.1.intermediate.dense", "cls.predictions.transform.dense")
    found = []
    for model in both("ForMaskedLM"):
        kept = []
        for path in paths:

            def retain(module, arguments, output, kept=kept):
                output.retain_grad()
                kept.append(output)

            model.get_submodule(path).register_forward_hook(retain)
        model(**batch("ForMaskedLM", True)).loss.backward()
        found.append([x.grad for x in kept])
    for mine, peer in zip(*found, strict=True):
        close(mine, peer)


def test_plain_models_do_work_in_place():
    model, _ = both("Model")
    with torch.profiler.profile() as training:
        model(**batch("Model", False))
    with torch.no_grad(), torch.profiler.profile() as inference:
        model(**batch("Model", False))
    counts = [{event.key: event.count for event in run.key_averages()} for run in (training, inference)]
    assert [count.get("aten::relu_") for count in counts] == [4, 4]
    assert all("aten::relu" not in count for count in counts)
    assert "aten::add_" not in counts[0]
    assert counts[1]["aten::add_"] >= 20


@pytest.mark.parametrize("head", ["ForPreTraining", "ForMultipleChoice", "ForQuestionAnswering"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_traced_model_gives_the_models_outputs(head, grad):
    model, _ = both(head)
    inputs = batch(head, True)
    given = inputs["input_ids"], inputs["attention_mask"]
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, given, strict=False)
    for ids in (given[0], given[0].flip(-1)):
        found, expected = traced(ids, given[1]), model(ids, given[1])
        assert list(found) == list(expected)
        close(first(found), first(expected))


def test_exported_compiled_and_functional_graphs_give_the_models_outputs():
    model, _ = both("ForMaskedLM")
    inputs = batch("ForMaskedLM", True)
    given = inputs["input_ids"], inputs["attention_mask"]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = model(*given).logits
            close(torch.export.export(model, given).module()(*given).logits, expected)
            close(compiled(*given).logits, expected)
            close(make_fx(lambda *given: model(*given).logits)(*given)(*given), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_function_transforms_work_on_the_model(grad):
    model, theirs = both("ForMaskedLM")
    ids, weights = batch("ForMaskedLM", True)["input_ids"], dict(model.named_parameters())

    def logits(weights):
        return torch.func.functional_call(model, weights, (ids,), {"output_attentions": True}).logits

    with torch.set_grad_enabled(grad):
        for name in (
            "mobilebert.encoder.layer.0.ffn.0.intermediate.dense.bias",
            "mobilebert.encoder.layer.0.attention.output.LayerNorm.bias",
            "mobilebert.encoder.layer.1.output.bottleneck.dense.weight",
        ):
            stacked = torch.stack([weights[name], 2 * weights[name]])
            found = torch.vmap(lambda own, name=name: logits({name: own}))(stacked)
            close(found[0], theirs(ids).logits)
            close(found[1], logits({name: stacked[1]}))
        tangents = {name: torch.ones_like(weight) for name, weight in weights.items()}
        found = torch.func.jvp(logits, (weights,), (tangents,))[1]
        step, weights = 1e-6, {name: weight.double() for name, weight in weights.items()}
        model.double()
        more, less = ({name: weight + move for name, weight in weights.items()} for move in (step, -step))
        close(found, (logits(more) - logits(less)) / (2 * step), 1e-3)


def test_forward_mode_differentiation_without_gradients_works():
    model, _ = both("Model")
    embedded, tangent = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))

    def last(x):
        return model(inputs_embeds=x, output_attentions=True).last_hidden_state

    with torch.no_grad(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(last(forward_ad.make_dual(embedded, tangent))).tangent
    close(found, torch.func.jvp(last, (embedded,), (tangent,))[1])


def test_hooks_on_folded_blocks_keep_their_tensors():
    model, kept = fold(both("Model")[0]), []
    model.encoder.layer[0].up[0].register_forward_hook(lambda module, arguments, output: kept.append((output, output.clone())))
    with torch.no_grad():
        model(**batch("Model", True))
    assert torch.equal(*kept[0])

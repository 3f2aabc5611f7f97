"""Compare inference of the folded MobileBERT and BERT_BASE on one GPU, in bf16 at length 128.

Each runs eager and compiled with CUDA graphs.

python tests/bench/gpu_inference.py encoder --batch 32 --out inference-32.json
python tests/bench/gpu_inference.py encoder --batch 1 --out inference-1.json

The programs run embeddings and encoder on ids that already lie on the device. A sample is the mean
of CALLS calls between two synchronisations. The first sample of a round is one call alone, and
includes compiling in the first round; the first `gpu.SETTLED` samples are left out.
"""

from __future__ import annotations

import time

import gpu
import torch

CALLS = 20


def models(options) -> dict:
    from transformers import BertConfig, BertModel
    from transformers import MobileBertConfig as TheirConfig
    from transformers import MobileBertModel as TheirModel

    from mobilebert import MobileBertConfig, MobileBertModel, fold

    torch.manual_seed(0)
    fields = gpu.widths(options.tiny)
    narrow = {key: value for key, value in fields.items() if key != "embedding_size"}
    own = MobileBertModel(MobileBertConfig.from_preset("mobilebert", **fields), add_pooling_layer=False).eval()
    config = {key: value for key, value in own.config.to_dict().items() if key not in ("model_type", "architectures")}
    theirs = TheirModel(TheirConfig(**config, attn_implementation="sdpa"), add_pooling_layer=False).eval()
    base = BertModel(BertConfig(**narrow, num_attention_heads=4 if options.tiny else 12), add_pooling_layer=False).eval()
    found = {"transformers MobileBERT": theirs, "ours": own, "ours, folded": fold(own), "BERT_BASE": base}
    return {name: model.to(options.device, torch.bfloat16) for name, model in found.items()}


def version(model, options, compiled: bool):
    ids = torch.randint(5, 1000, (options.batch, options.length), device=options.device)
    call = torch.compile(model, mode="reduce-overhead", fullgraph=False) if compiled else model

    @torch.inference_mode()
    def run(steps: int) -> tuple[list[float], dict]:
        seconds = []
        for step in range(steps):
            calls = CALLS if step and not options.tiny else 1
            start = time.perf_counter()
            for _ in range(calls):
                torch.compiler.cudagraph_mark_step_begin()
                call(ids)
            gpu.synchronize(options.device)
            seconds.append((time.perf_counter() - start) / calls)
        return seconds, {}

    return run


def main() -> None:
    options = gpu.arguments(__doc__, ("encoder",))
    versions = {}
    for name, model in models(options).items():
        versions[f"{name}, eager"] = lambda model=model: version(model, options, False)
        versions[f"{name}, compiled, graph"] = lambda model=model: version(model, options, True)
    gpu.measure(versions, options)


if __name__ == "__main__":
    main()

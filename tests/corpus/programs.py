"""Whole models that load and run, and attack when they do: what the sandbox is for.

Each is refused by the scan; `tests/faults` gives them to workers that never saw it. torch drops
operators whose result nobody uses, so each result is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.corpus.case import module_pickle, parts, storage, tensor, text, zipped

_SETSTATE = """  def __getstate__(self: __torch__.attack.Net) -> Tuple[bool, Tensor]:
    return (self.training, self.weight)
  def __setstate__(self: __torch__.attack.Net,
    state: Tuple[bool, Tensor]) -> NoneType:
    self.training = (state)[0]
    self.weight = (state)[1]
    torch.save(1, "{path}")
    return None
"""


@dataclass(frozen=True)
class Program:
    """A model whose forward attacks.

    Attributes:
        build: The file, given the path of a file to attack.
        does: Without walls: `changes` or `makes` the file, `reads` it, or `starves` the machine.
        code: How a job with it ends behind the walls; None where torch does not notice that it
            could not write.
    """

    name: str
    does: str
    code: str | None
    build: Callable[[Path], bytes]

    def __str__(self) -> str:
        return self.name


def model(body: str, methods: str = "", *, has_state: bool = False) -> bytes:
    """A linear layer, so that a job has something to compress, and then `body`."""
    weight = tensor(storage("0", 16), [4, 4], [4, 1])
    state = b"c__torch__.attack\nNet\n)\x81\x89" + weight + b"\x86b."
    entries = parts(
        f"y0 = torch.linear(x, self.weight)\n{body}",
        data=b"\x80\x02" + state if has_state else module_pickle(text("weight") + weight),
        records={"data/0": np.eye(4, dtype=np.float32).tobytes()},
        declared="  weight : Tensor\n",
        methods=methods,
    )
    return zipped(
        {
            name: content.replace(b"__parameters__ = []", b'__parameters__ = ["weight", ]')
            for name, content in entries.items()
        }
    )


PROGRAMS = [
    Program("read a file", "reads", "model_failed", lambda path: model(
        f'y = torch.from_file("{path}", False, 6, dtype=0)\n'
        "return torch.add(y0, torch.sum(y))")),
    Program("change a file", "changes", "model_failed", lambda path: model(
        f'y = torch.from_file("{path}", True, 6, dtype=0)\n'
        "z = torch.fill_(y, 88)\nreturn torch.add(y0, torch.sum(z))")),
    Program("make a file", "makes", "model_failed", lambda path: model(
        f'y = torch.from_file("{path}", True, 6, dtype=0)\n'
        "z = torch.fill_(y, 88)\nreturn torch.add(y0, torch.sum(z))")),
    Program("save over a file", "changes", None, lambda path: model(
        f'torch.save(y0, "{path}")\nreturn torch.relu(y0)')),
    Program("save on loading", "changes", None, lambda path: model(
        "return torch.relu(y0)", methods=_SETSTATE.format(path=path), has_state=True)),
    Program("much memory", "starves", "out_of_memory", lambda _path: model(
        "y = torch.ones([8000000000])\nreturn torch.add(y0, torch.sum(y))")),
    Program("more and more memory", "starves", "out_of_memory", lambda _path: model(
        "held = annotate(List[Tensor], [])\nfor i in range(100000):\n"
        "  _0 = torch.append(held, torch.ones([1000000]))\n"
        "return torch.add(y0, torch.sum(torch.stack(held)))")),
    Program("never end", "starves", "timeout", lambda _path: model(
        "y = y0\nfor i in range(9223372036854775807):\n  y = torch.sin(y)\nreturn y")),
]  # fmt: skip

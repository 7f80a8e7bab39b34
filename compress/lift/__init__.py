"""TorchScript to a trainable, quantizable torch.fx graph, from the file alone.

`load` reads the file. `interpreter` walks its graph, module by module, and hands each operator to
`operators`, which says what it becomes; `builder` writes the FX graph and computes every value
beside it. `verify` compares the result with the original.
"""

from compress.lift.lift import lift
from compress.lift.load import forward_arguments, load_model
from compress.lift.loops import LoopModule, is_loop
from compress.lift.oracle import clean_message
from compress.lift.report import Lifted, LiftReport
from compress.lift.state import has_state

__all__ = [
    "LiftReport", "Lifted", "LoopModule", "clean_message", "forward_arguments", "has_state",
    "is_loop", "lift", "load_model",
]  # fmt: skip

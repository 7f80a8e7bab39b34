"""Structured pruning of channels of a lifted graph.

`tracing` runs the graph once and follows each channel from the layer that makes it to those that
read it; `classes` joins those that can only be cut together. `importance` scores them, `choosing`
says which go, `cutting` makes the smaller graph.
"""

from compress.prune.prune import Pruned, prune
from compress.prune.report import PrunedLayer, PruneReport

__all__ = ["PruneReport", "Pruned", "PrunedLayer", "prune"]

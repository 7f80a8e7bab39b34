"""A reference graph traced by `torch.export`, with the sizes free that may vary."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx

from compress.errors import ExportFailed
from compress.export.plan import Plan
from compress.export.runners import first_line
from compress.export.signature import Signature, free_axes, shapes_for_export
from compress.measure.size import sha256
from compress.provenance import tersor_version


def trace(
    plan: Plan, reference: fx.GraphModule, signature: Signature, format_name: str
) -> torch.export.ExportedProgram:
    """Trace a reference graph on the plan's example.

    Raises:
        ExportFailed: It holds what cannot be traced.
    """
    example = plan.cast_probes()[-1]
    axes = free_axes(signature, plan.cast_probes(), plan.dynamic_dims)
    shapes = shapes_for_export(signature, example, axes, torch.export.Dim.AUTO)
    with torch.no_grad(), quiet_exporter():
        try:
            return torch.export.export(
                reference, tuple(example), dynamic_shapes=tuple(shapes), strict=False
            )
        except MemoryError:
            raise
        except Exception as error:  # tracing runs anything, and raises anything
            raise ExportFailed(
                f"The model could not be traced for {format_name}: {first_line(root_of(error))} "
                "Ask for format 'torchscript'."
            ) from error


def properties(plan: Plan) -> dict[str, str]:
    """Return what a file says of itself."""
    return {
        "tersor.version": tersor_version(),
        "tersor.model_sha256": sha256(plan.original),
        "tersor.precision": plan.precision,
        "tersor.holds_where": "; ".join(plan.guards),
    }


def root_of(error: BaseException) -> BaseException:
    """The first of the errors that led to this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's own warnings from users, who can do nothing about them."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)

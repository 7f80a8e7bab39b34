"""Where a result came from, and the manifest that lies beside the artifact."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compress.measure.size import sha256
from compress.result import Inputs, Result
from compress.spec import EngineSpec


def trace_provenance(
    spec: EngineSpec, inputs: Inputs, *, full_range: bool | None
) -> dict[str, Any]:
    """Return digests of all that went in, the seed and Tersor's version.

    `activation_range` says where an int8 file is exact: `full` needs an x86 processor with
    AVX512-VNNI, or arm's kernels for a file for arm; `reduced` runs right on any. None where no
    activation got a fixed range.
    """
    roles = (inputs.calibration, inputs.evaluation, inputs.training)
    datasets = [path for path in roles if path is not None]
    return {
        "model_sha256": sha256(inputs.model),
        "student_sha256": None if inputs.student is None else sha256(inputs.student),
        "dataset_sha256": [sha256(path) for path in dict.fromkeys(datasets)],
        "spec_sha256": spec_sha256(spec),
        "seed": spec.seed,
        "tersor": tersor_version(),
        "activation_range": None if full_range is None else ("full" if full_range else "reduced"),
    }


def spec_sha256(spec: EngineSpec) -> str:
    """Return the digest of the spec as JSON with sorted keys, overrides in their order."""
    plain = asdict(spec)
    overrides = plain["config"].pop("overrides", None)
    if overrides is not None:
        plain["config"]["overrides"] = list(overrides.items())  # the last match wins: order counts
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def tersor_version() -> str:
    """Return the installed version, or `unknown` in a bare source tree."""
    try:
        return version("tersor")
    except PackageNotFoundError:
        return "unknown"


def write_manifest(out_dir: Path, result: Result) -> Path:
    """Write `manifest.json`, whole or not at all."""
    path = out_dir / "manifest.json"
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
    part.replace(path)
    return path

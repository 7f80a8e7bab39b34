"""Models and datasets: upload, list, look, download, remove."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor import resumable
from tersor.downloads import download, safe_file_name
from tersor.errors import ConfigurationError
from tersor.parsing import parse
from tersor.transport import Transport, path_of
from tersor.uploads import FileUpload, Progress
from tersor.views import Dataset, Model


class Models:
    """Uploaded TorchScript files; `client.models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self,
        path: Path | str,
        name: str | None = None,
        *,
        inputs: Sequence[Mapping[str, Any]] | None = None,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Upload a TorchScript file, streamed from disk; a large one goes on after a cut.

        Args:
            path: The file, as `torch.jit.save` wrote it.
            name: How it is called; the file's name by default.
            inputs: Shapes for jobs without a dataset:
                `[{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}]`.
            labels: Free key-value pairs.
            progress: Called with bytes sent and bytes in all.
        """
        fields = _fields(name, labels)
        if inputs is not None:
            fields["inputs"] = [dict(each) for each in inputs]
        return parse(Model, _upload(self._transport, "models", Path(path), fields, progress))

    def from_artifact(
        self, artifact_id: str, name: str, *, labels: Mapping[str, str] | None = None
    ) -> Model:
        """Make a model of a job's artifact, without moving its bytes."""
        body: dict[str, Any] = {"artifact_id": artifact_id, "name": name}
        if labels:
            body["labels"] = dict(labels)
        return parse(Model, self._transport.create("/v1/models", body).json())

    def list(self, limit: int | None = None) -> Iterator[Model]:
        """Yield the project's models, newest first, fetching pages as they are needed."""
        for item in self._transport.pages("/v1/models", {}, limit):
            yield parse(Model, item)

    def get(self, model_id: str) -> Model:
        """Look at one model."""
        return parse(Model, self._transport.get(path_of("models", model_id)).json())

    def download(
        self, model_id: str, path: Path | str, *, progress: Progress | None = None
    ) -> Path:
        """Save the file as it was uploaded; `path` is a file, or a folder that exists."""
        model = self.get(model_id)
        target = _target(Path(path), safe_file_name(model.name, model.id, ".pt"))
        return download(
            self._transport, path_of("models", model_id, "content"), target,
            sha256=model.sha256, size_bytes=model.size_bytes, progress=progress,
        )  # fmt: skip

    def delete(self, model_id: str) -> None:
        """Remove a model that no unfinished job needs."""
        self._transport.delete(path_of("models", model_id))


class Datasets:
    """Uploaded npz and safetensors files; `client.datasets`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self,
        path: Path | str,
        name: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Upload an .npz or .safetensors file, streamed from disk; a large one goes on after a cut.

        Its arrays are `input`, or `input_0`, `input_1` … in the order of forward's arguments,
        first axis the sample, and optionally `label`.
        """
        fields = _fields(name, labels)
        return parse(Dataset, _upload(self._transport, "datasets", Path(path), fields, progress))

    def from_arrays(
        self,
        name: str = "arrays",
        *,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        **arrays: Any,
    ) -> Dataset:
        """Upload arrays, such as `from_arrays(input=images, label=classes)`. Needs numpy.

        Raises:
            ConfigurationError: numpy is missing, or an array holds Python objects.
        """
        try:
            import numpy as np
        except ImportError as error:
            raise ConfigurationError(
                "from_arrays needs numpy: install it, or upload an .npz file.",
                code="numpy_missing",
            ) from error
        plain = {key: np.asarray(value) for key, value in arrays.items()}
        for key, array in plain.items():
            if array.dtype == object:
                raise ConfigurationError(
                    f"{key!r} holds Python objects; give an array of numbers.",
                    code="object_arrays_not_allowed",
                )
        with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
            path = Path(folder) / "arrays.npz"
            np.savez(path, allow_pickle=False, **plain)
            return self.upload(path, name, labels=labels, progress=progress)

    def list(self, limit: int | None = None) -> Iterator[Dataset]:
        """Yield the project's datasets, newest first, fetching pages as they are needed."""
        for item in self._transport.pages("/v1/datasets", {}, limit):
            yield parse(Dataset, item)

    def get(self, dataset_id: str) -> Dataset:
        """Look at one dataset."""
        return parse(Dataset, self._transport.get(path_of("datasets", dataset_id)).json())

    def download(
        self, dataset_id: str, path: Path | str, *, progress: Progress | None = None
    ) -> Path:
        """Save the file as it was uploaded; `path` is a file, or a folder that exists."""
        dataset = self.get(dataset_id)
        suffix = f".{dataset.format}"
        target = _target(Path(path), safe_file_name(dataset.name, dataset.id, suffix))
        return download(
            self._transport, path_of("datasets", dataset_id, "content"), target,
            sha256=dataset.sha256, size_bytes=dataset.size_bytes, progress=progress,
        )  # fmt: skip

    def delete(self, dataset_id: str) -> None:
        """Remove a dataset that no unfinished job needs."""
        self._transport.delete(path_of("datasets", dataset_id))


def _fields(name: str | None, labels: Mapping[str, str] | None) -> dict[str, Any]:
    fields: dict[str, Any] = {} if name is None else {"name": name}
    if labels:
        fields["labels"] = dict(labels)
    return fields


def _upload(
    transport: Transport,
    kind: str,
    path: Path,
    fields: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    fields = {"name": path.name, **fields}
    if path.is_file() and path.stat().st_size >= resumable.FROM_BYTES:
        return resumable.upload(transport, f"/v1/{kind}", path, fields, progress)
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    body = FileUpload(path, texts, progress)
    answer: dict[str, Any] = transport.upload(f"/v1/{kind}", lambda: body, body.headers).json()
    return answer


def _target(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path

"""A row for each table, with something in each column: what a running service might hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_THEN = datetime(2026, 11, 24, 12, 30, 15, 250_000, tzinfo=UTC)
_LATER = datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC)
_LARGE = 5 * 2**40  # beyond 32 bits

ROWS: dict[str, dict[str, Any]] = {
    "api_keys": {
        "id": "key_1", "project_id": "prj_1", "name": "ключ", "prefix": "tsr_abc",
        "token_sha256": "a" * 64, "scopes": ["read", "write"], "created_at": _THEN,
        "revoked_at": _LATER, "expires_at": _LATER,
    },
    "artifacts": {
        "id": "art_1", "job_id": "job_1", "project_id": "prj_1", "name": "m.int8.pt",
        "kind": "model", "format": "torchscript", "precision": "int8", "size_bytes": _LARGE,
        "sha256": "b" * 64, "storage_key": "jobs/job_1/3/m.int8.pt", "created_at": _THEN,
    },
    "audit_events": {
        "id": "aud_1", "created_at": _THEN, "project_id": "prj_1", "key_id": "key_1",
        "action": "model.create", "subject_id": "mdl_1", "request_id": "req",
        "details": {"name": "m.pt"},
    },
    "blobs": {"sha256": "c" * 64, "size_bytes": _LARGE, "touched_at": _THEN},
    "counters": {"name": "tersor_jobs_finished", "labels": "job,ptq,failed", "value": 2.5},
    "datasets": {
        "id": "dst_1", "project_id": "prj_1", "name": "d.npz", "format": "npz",
        "size_bytes": _LARGE, "sha256": "c" * 64, "samples": _LARGE,
        "arrays": [{"name": "input", "dtype": "float32", "shape": [9, 3]}], "has_labels": True,
        "labels": {"a": "b"}, "created_at": _THEN,
    },
    "first_answers": {
        "project_id": "prj_1", "key": "once", "fingerprint": "d" * 64, "status": 201,
        "headers": {"location": "/v1/models/mdl_1"}, "body": '{"id": "mdl_1"}',
        "created_at": _THEN,
    },
    "job_datasets": {"job_id": "job_1", "role": "calibration", "dataset_id": "dst_1"},
    "job_events": {
        "job_id": "job_1", "created_at": _THEN, "level": "warning", "type": "log",
        "message": "é", "data": {"n": 1},
    },
    "job_labels": {"job_id": "job_1", "key": "team", "value": "vision", "project_id": "prj_1"},
    "jobs": {
        "id": "job_1", "project_id": "prj_1", "kind": "job", "method": "ptq", "queue": "cpu",
        "status": "failed", "stage": "convert", "progress": 0.625, "message": "half-way",
        "eta_seconds": 12.5, "spec": {"method": "ptq", "config": {"bits": 8}},
        "model_id": "mdl_1", "labels": {"team": "vision"}, "priority": 3, "timeout_s": 60,
        "error": {"code": "storage_full", "message": "…"}, "result": {"artifacts": []},
        "version": 17, "attempt": 2, "fence": 3, "owner": "host/1/2/3",
        "lease_expires_at": _LATER, "message_sent_at": _THEN, "created_at": _THEN,
        "started_at": _THEN, "finished_at": _LATER, "cancel_requested_at": _LATER,
        "student_model_id": "mdl_2", "request_id": "req",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "peak_memory_bytes": _LARGE,
        "tallied": True,
    },
    "models": {
        "id": "mdl_1", "project_id": "prj_1", "name": "m.pt", "status": "ready",
        "size_bytes": _LARGE, "sha256": "c" * 64,
        "inputs": [{"name": "x", "shape": ["batch", 3]}], "arguments": [{"name": "x"}],
        "operators": {"aten::relu": 2}, "parameters": _LARGE, "labels": {}, "created_at": _THEN,
    },
    "projects": {
        "id": "prj_1", "name": "Überall", "created_at": _THEN, "stored_bytes_max": _LARGE,
        "unfinished_jobs_max": 5, "requests_per_s_max": 7, "expires_after_s": 3600,
    },
    "uploads": {
        "id": "upl_1", "project_id": "prj_1", "size_bytes": _LARGE, "offset_bytes": _LARGE - 1,
        "upload_metadata": {"filename": "m.pt"}, "created_at": _THEN, "expires_at": _LATER,
    },
    "webhook_deliveries": {
        "id": "dlv_1", "project_id": "prj_1", "job_id": "job_1", "type": "job.failed",
        "url": "https://example.com/hook", "body": "{}", "status": "waiting", "attempts": 2,
        "next_attempt_at": _LATER, "response_status": 500, "error": "no", "created_at": _THEN,
        "delivered_at": _LATER,
    },
    "webhook_secrets": {
        "project_id": "prj_1", "secret": "whsec_1", "previous": "whsec_0", "changed_at": _THEN,
    },
    "workers": {
        "id": "host/1/2/3", "queues": ["cpu", "inspect"], "slots": 2, "info": {"devices": ["cpu"]},
        "started_at": _THEN, "seen_at": _LATER,
    },
}  # fmt: skip

FILLED_IN: dict[tuple[str, str], Any] = {("jobs", "tallied"): False}
"""What migrations put into columns that they add; elsewhere they put NULL."""

"""Methods and the schemas of their configs."""

from __future__ import annotations

from starlette.testclient import TestClient


def test_methods_describe_themselves(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()["data"]
    assert [method["name"] for method in methods] == ["ptq", "qat", "distill", "mixed", "convert"]
    for method in methods:
        assert client.get(f"/v1/methods/{method['name']}").json() == method
        schema = client.get(method["schema_url"]).json()
        assert schema["additionalProperties"] is False
        defaults = {name: field["default"] for name, field in schema["properties"].items()}
        assert defaults == method["defaults"]
        assert all(field["description"] for field in schema["properties"].values())
    assert client.get("/v1/methods/magic").status_code == 404
    assert client.get("/v1/methods/magic/schema").status_code == 404


def test_inherited_fields_are_described_wherever_schemas_are_shown(client: TestClient) -> None:
    shown = client.get("/openapi.json").json()["components"]["schemas"]
    for method, name in (("qat", "QatConfig"), ("distill", "DistillConfig")):
        schema = client.get(f"/v1/methods/{method}/schema").json()
        assert "Passes over the training data" in schema["properties"]["epochs"]["description"]
        told = shown[name]["properties"]
        assert all(field["description"] for field in told.values())
        assert told["epochs"]["description"] == schema["properties"]["epochs"]["description"]
    rates = [shown[name]["properties"]["learning_rate"] for name in ("QatConfig", "DistillConfig")]
    assert rates[0]["description"] != rates[1]["description"]  # a field's own words come first

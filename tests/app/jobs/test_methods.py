"""Methods and the schemas of their configs."""

from __future__ import annotations

from starlette.testclient import TestClient


def test_methods_describe_themselves(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()["data"]
    assert [method["name"] for method in methods] == ["ptq", "convert"]
    for method in methods:
        assert client.get(f"/v1/methods/{method['name']}").json() == method
        schema = client.get(method["schema_url"]).json()
        assert schema["additionalProperties"] is False
        defaults = {name: field["default"] for name, field in schema["properties"].items()}
        assert defaults == method["defaults"]
        assert all(field["description"] for field in schema["properties"].values())
    assert client.get("/v1/methods/magic").status_code == 404
    assert client.get("/v1/methods/magic/schema").status_code == 404

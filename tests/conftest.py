pytest_plugins = ["tests.brief", "tests.databases"]

"""Code that reaches for what no model needs, by every way that TorchScript has."""

from __future__ import annotations

from tests.corpus.case import Case, class_code, model, parts, zipped

PATH = "/tmp/tersor-was-here"
SETSTATE = """  def __setstate__(self: __torch__.attack.Net,
    state: Tuple[bool]) -> NoneType:
    self.training = (state)[0]
    torch.save(1, "{path}")
    return None
"""


def _case(name: str, body: str, code: str = "operation_not_allowed", **given: str) -> Case:
    return Case(name, code, lambda: model(body, **given))


def _raw(name: str, source: str, code: str = "bad_code") -> Case:
    return Case(name, code, lambda: zipped(parts(code=source.encode())))


def _nested(depth: int) -> str:
    return f"y = x{'.T' * depth}\nreturn x"


CASES = [
    _case("from_file", f'return torch.from_file("{PATH}", True, 9)'),
    _case("save", f'torch.save(x, "{PATH}")\nreturn x'),
    _case("save by its namespace", f'ops.aten.save(x, "{PATH}")\nreturn x'),
    _case("save as a method", f'x.save("{PATH}")\nreturn x'),
    _case("from_file as a string's method", f'return "{PATH}".from_file(True, 9)'),
    _case("save on loading", "return x", methods=SETSTATE.format(path=PATH)),
    _case("torch by another name", f't = torch\nt.save(x, "{PATH}")\nreturn x'),
    _case("operator by another name", f'f = torch.save\nf(x, "{PATH}")\nreturn x'),
    _case("method by another name", f'f = x.save\nf("{PATH}")\nreturn x'),
    _case("word by another meaning", f'int = x.save\nint("{PATH}")\nreturn x'),
    _case("parameter as a function", 'return x("a")'),
    _case("two meanings of a name",
          f'_0 = __torch__.attack.helper\n_0 = x.save\n_0("{PATH}")\nreturn x'),
    _case("getattr of torch", f'getattr(torch, "save")(x, "{PATH}")\nreturn x'),
    _case("getattr of a value", f'getattr(x, "save")("{PATH}")\nreturn x'),
    _case("spaces", f'torch . save (x, "{PATH}")\nreturn x'),
    _case("brackets", f'(torch).save(x, "{PATH}")\nreturn x'),
    _case("choice", f'(x.save if True else x.save)("{PATH}")\nreturn x'),
    _case("list", f'[x.save][0]("{PATH}")\nreturn x'),
    _case("fork", f'y = fork(torch.save, x, "{PATH}")\nreturn x'),
    _case("fork of a method", f'y = fork(x.save, "{PATH}")\nreturn x'),
    _case("method of the same name", f'x.save("{PATH}")\nreturn x', methods=(
        "  def save(self: __torch__.attack.Net,\n    x: str) -> NoneType:\n    return None\n")),
    _case("default value", "return x", forward=(
        "  def forward(self: __torch__.attack.Net,\n"
        f'    x: Tensor=torch.from_file("{PATH}", True, 9)) -> Tensor:\n')),
    _case("manual_seed", "torch.manual_seed(0)\nreturn x"),
    _case("set_grad_enabled", "torch.set_grad_enabled(True)\nreturn x"),
    _case("print", 'print("x")\nreturn x'),
    _case("memory of the process", "return torch.set_(x, torch.zeros([9]))"),
    _case("internals", "return torch._cudnn_init_dropout_state(0.5, True, 1)"),
    _case("remote call", 'y = ops.prim.rpc_async("w", "f")\nreturn x'),
    _case("another library's operator", "return ops.torchvision.nms(x, x, 0.5)"),
    _case("torch's own tests' operator", "return ops._test.leaky_relu(x)"),
    _case("Python's import", '__import__("os").system("true")\nreturn x'),
    _case("open", f'open("{PATH}")\nreturn x'),
    _case("Python function", "return ^Attack()(x)"),
    _case("C++ class", "y = __torch__.torch.classes.quantized.Conv2dPackedParamsBase\nreturn x",
          "class_not_allowed"),
    _case("C++ class as a type", "return x", "class_not_allowed",
          declared="  packed : __torch__.torch.classes.quantized.LinearPackedParamsBase\n"),
    _case("lambda", "f = lambda: x\nreturn x", "bad_code"),
    _case("comprehension", "y = [z for z in x]\nreturn x", "bad_code"),
    _case("import", "import os\nreturn x", "bad_code"),
    _case("another alphabet", "tｏrch = x\nreturn x", "bad_code"),
    _case("carriage return", "# harmless\r    torch.save(x, 'p')\nreturn x", "bad_code"),
    _case("deep", _nested(250), "code_too_complex"),
    _case("deeper", f"return {'(' * 5000}x{')' * 5000}", "bad_code"),
    _case("deepest", f"return {'-' * 200_000}x", "bad_code"),
    _raw("NUL", class_code("return x").replace("x", "\0")),
    _raw("no code at all", "def ("),
    _raw("no class", "", "corrupt_pickle"),
    _case("any number of arguments", "return x", "bad_signature", forward=(
        "  def forward(self: __torch__.attack.Net, *x: Tensor) -> Tensor:\n")),
]  # fmt: skip

"""The shape of the package, held by tests: which way imports point, and what is written only once."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import superself
from superself import Supervisor
from superself.algorithms import ALGORITHMS

from cases import CASES

PACKAGE = Path(superself.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# What a part may import of the package, besides itself: the parts below it.
LAYERS = (
    {"version"},
    {"basics"},
    {"networks", "training"},
    {"losses"},  # some keep a queue of negatives
    {"data"},
    {"augment"},
    {"evaluation"},
    {"exporting", "reporting"},
    {"state"},
    {"buildable"},
    {"supervisor"},
    {"joint_embedding", "adversarial", "labels"},
    {"multi_crop"},
    {"algorithms"},
    {"loading", "suggestions"},
    {"comparison", "embedding"},
)
MAY_IMPORT = {part: set().union(*LAYERS[:level]) for level, parts in enumerate(LAYERS) for part in parts}
SIGNATURES = {
    "_load_pretrained": "self name pretrained",
    "_init_data_optimizer": "self optimizer batch_size shuffle num_workers collate_fn lr lr_scheduler",
    "_epochs": "self epochs train_loader optimizer lr_scheduler",
    "_forward": "self data",
    "_update": "self loss optimizer lr_scheduler",
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("superself."):
            yield node.module.split(".")[1]
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("superself."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return
    allowed = MAY_IMPORT[part] | {part}
    assert set(imports_of(ast.parse(path.read_text()))) <= allowed


def module_name(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def modules_imported_by(path, modules):
    """The modules of the package that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("superself"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("superself"))


def test_no_module_imports_itself_through_others():
    modules = {module_name(path): path for path in FILES}
    graph = {name: set(modules_imported_by(path, modules)) - {name} for name, path in modules.items()}
    finished, running = set(), []

    def visit(name):
        assert name not in running, " -> ".join([*running[running.index(name) :], name])
        if name not in finished:
            running.append(name)
            for other in sorted(graph.get(name, ())):
                visit(other)
            finished.add(running.pop())

    for name in graph:
        visit(name)


def test_no_function_has_the_name_of_its_module():
    for path in FILES:
        defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert path.stem not in defined, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_device_is_written_into_the_package(path):
    """No .cuda(), no "cuda:0": where the parameters are is where work is done. Asking what kind a device is, is allowed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            values = [*node.args, *(k.value for k in node.keywords if k.arg == "device")]
            literals = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
            assert not [text for text in literals if text.split(":")[0] in ("cuda", "mps", "xpu")], ast.unparse(node)
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"), ast.unparse(node)


def test_there_is_one_epoch_loop():
    def updates(node):
        return any(isinstance(n, ast.Attribute) and n.attr == "_update" for n in ast.walk(node))

    loops = [
        (path.name, loop.lineno)
        for path in FILES
        for loop in ast.walk(ast.parse(path.read_text()))
        if isinstance(loop, ast.While | ast.For) and updates(loop)
    ]
    assert {name for name, _ in loops} == {"supervisor.py"}
    backward = [p.name for p in FILES if ".backward(" in p.read_text()]
    assert sorted(backward) == [
        "estimate.py",
        "supervisor.py",
    ]  # the step, and the pass that estimates how long a run takes


@pytest.mark.parametrize("hook", SIGNATURES)
def test_signatures_of_the_hooks_are_frozen(hook):
    assert list(inspect.signature(getattr(Supervisor, hook)).parameters) == SIGNATURES[hook].split()


def test_signature_of_supervise_is_frozen():
    parameters = inspect.signature(Supervisor.supervise).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and n != "self"}
    assert list(positional) == [
        "lr",
        "optimizer",
        "epochs",
        "batch_size",
        "shuffle",
        "num_workers",
        "name",
        "pretrained",
        "lr_scheduler",
    ]
    assert positional["lr"] == 1e-3 and positional["epochs"] == 10 and positional["batch_size"] == 32
    assert positional["name"] == "store/base" and positional["lr_scheduler"] is None


def test_registry_is_the_cases_and_is_public():
    assert set(ALGORITHMS.values()) == {case.algorithm for case in CASES}
    for cls in ALGORITHMS.values():
        assert getattr(superself, cls.__name__) is cls


def test_every_algorithm_has_a_file_of_its_own():
    files = {inspect.getfile(cls) for cls in ALGORITHMS.values()}
    assert files == {str(p) for p in (PACKAGE / "algorithms").glob("*.py") if p.name != "__init__.py"}
    assert len(files) == len(ALGORITHMS)


def test_every_algorithm_has_a_test_a_case_and_a_page():
    root = PACKAGE.parent
    for name in ALGORITHMS:
        assert (root / "tests" / "algorithms" / f"test_{name}.py").is_file(), name
        page = root / "docs" / "algorithms" / f"{name}.md"
        assert page.is_file() and "```python" in page.read_text(), name


def test_importing_needs_no_elasticdeform_and_no_extra():
    script = (
        "import sys\n"
        "for name in ('elasticdeform', 'timm', 'lightly', 'matplotlib'): sys.modules[name] = None\n"
        "for name in ('tensorboard', 'mlflow', 'wandb'): sys.modules[name] = None\n"
        "import superself; print(superself.list_algorithms())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "rotatenet" in done.stdout, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_everything_public_is_documented(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    assert module.__doc__, name
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") and getattr(v, "__module__", None) == name}
    for member in own.values():
        assert inspect.getdoc(member), member
        if inspect.isfunction(member):
            assert inspect.signature(member).return_annotation is not inspect.Signature.empty, member
        for key, method in vars(member).items() if inspect.isclass(member) else ():
            if inspect.isfunction(method) and not key.startswith("_"):
                assert inspect.getdoc(method), method  # an override may leave the words to what it overrides

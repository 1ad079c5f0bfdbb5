"""The house rules: imports go down, modules are short and documented, the public names are the ones declared."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import telescopic

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "telescopic"
FILES = {
    ".".join(("telescopic", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# Floors, lowest first. A room (a module or package directly under telescopic) imports from lower floors, or from rooms
# of its own floor as long as that makes no circle. A new room goes as low as what it imports allows.
FLOORS = (
    (
        "subnet",
        "files",
        "documents",
        "extras",
        "limits",
        "metric",
        "provenance",
        "quantities",
        "shapes",
        "tensorheader",
    ),
    ("ambient", "classes", "denormals", "stock", "tables", "tasks", "wrappers"),
    ("images", "importance", "inputs", "neighbours", "tensorfile"),
    ("data", "decoder", "layers"),
    ("nested",),
    ("architecture", "extract", "folding", "cost", "fits", "statistics", "evaluate", "readout", "shrink"),
    ("nest", "causal", "slim", "networks"),
    ("catalogue",),
    ("anytime", "bundle", "engine", "export", "serve", "testing"),
    ("train", "packing"),
    ("recipes",),
    ("report",),
    ("papers",),
    ("run",),
    ("cli",),
    ("__main__",),
)
HEAVY = {"accelerate", "fastapi", "matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino", "requests", "rich"}
HEAVY |= {"scipy", "sklearn", "typer"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@cache
def trees() -> dict[str, ast.Module]:
    """What each module is made of; read when it is asked for, and not by each process that collects tests."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


@cache
def imports(name: str) -> set[str]:
    """The modules that a module imports anywhere in its text; ours to the module, others' to the top package."""
    package = name if FILES[name].stem == "__init__" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            # `from telescopic import cost` means the module of that name if there is one.
            found.update(inner if (inner := f"{origin}.{alias.name}") in FILES else origin for alias in node.names)
    return {module if module in FILES else module.partition(".")[0] for module in found}


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in FILES if name != "telescopic"} == set(FLOOR)


def test_imports_go_down() -> None:
    for name in FILES:
        ours = {module for module in imports(name) if module.startswith("telescopic")}
        assert name == "telescopic.__main__" or "telescopic.cli" not in ours, name
        if name not in ("telescopic", "telescopic.cli"):
            assert "telescopic" not in ours, (
                f"{name}: the package itself stands above its modules: import from the module"
            )
        if name != "telescopic":
            up = {module for module in ours - {"telescopic"} if FLOOR[room(module)] > FLOOR[room(name)]}
            assert not up, f"{name} is on floor {FLOOR[room(name)]}, below {up}"


def test_imports_make_no_circle() -> None:
    # Rooms too, not only modules: two packages that import from each other are one package in disguise.
    rooms: dict[str, set[str]] = {}
    for name in FILES:
        if name != "telescopic":
            others = {room(module) for module in imports(name) if module.startswith("telescopic.")} - {room(name)}
            rooms.setdefault(room(name), set()).update(others)
    TopologicalSorter(rooms).prepare()
    TopologicalSorter({name: imports(name) & FILES.keys() for name in FILES}).prepare()


def test_a_subnet_is_a_plain_value() -> None:
    assert imports("telescopic.subnet") <= sys.stdlib_module_names


def test_the_engine_needs_no_torch() -> None:
    # It runs where only a pack and what opens it are. Nor does anything that it imports load torch.
    engine = [name for name in FILES if name.startswith("telescopic.engine")]
    ours = {module for name in engine for module in imports(name) if module.startswith("telescopic.")}
    assert {room(module) for module in ours - {"telescopic.catalogue.choosing"}} <= {"engine", *FLOORS[0]}
    code = f"import sys, {', '.join(engine)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "numpy" in loaded and not loaded & {"torch", *HEAVY}


def test_modules_are_short_and_documented() -> None:
    assert [name for name, tree in trees().items() if not ast.get_docstring(tree)] == []
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in FILES.items()}
    assert {name: number for name, number in lines.items() if number > 400} == {}


def test_nothing_is_unpickled() -> None:
    # A bundle, checkpoint or data file from a stranger must not be able to run code.
    for name, tree in trees().items():
        assert not imports(name) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, name
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if ast.unparse(call.func) == "torch.load"], name
        words = [word for call in calls for word in call.keywords if word.arg == "allow_pickle"]
        assert not [word.value.lineno for word in words if ast.unparse(word.value) != "False"], name


def test_all_is_what_can_be_imported() -> None:
    for module in pkgutil.walk_packages(telescopic.__path__, "telescopic."):
        if module.name != "telescopic.__main__":  # which runs the program
            importlib.import_module(module.name)  # must not put the module telescopic.cost in place of the function
    declared = {name: getattr(telescopic, name) for name in telescopic.__all__}
    assert len(declared) == len(telescopic.__all__)
    modules = {name for name, value in declared.items() if inspect.ismodule(value)}
    assert modules == {"data", "importance", "layers", "networks", "papers", "recipes", "shrink", "tasks", "testing"}
    others = {name: value for name, value in vars(telescopic).items() if not name.startswith("_")}
    assert {name for name, value in others.items() if not inspect.ismodule(value)} <= declared.keys()


def test_heavy_packages_wait_until_they_are_used() -> None:
    code = """
import sys, telescopic
assert "torch" not in sys.modules
for name in telescopic.__all__:
    getattr(telescopic, name)
print(*{name.partition('.')[0] for name in sys.modules})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert "torch" in loaded
    assert not HEAVY & {*loaded}


def test_no_file_names_a_machine_or_a_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("which files belong to the project is known in a git checkout only")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    # In halves, so that this file does not name them either.
    halves = "/wo|rk/ /tm|p/t/ /op|t/pypi /ro|ot/ registry.npm|js pyp|i.org pythonhost|ed deb.deb|ian"
    words = [half.encode() for half in halves.replace("|", "").split()]
    files = [path for name in names if name and (path := ROOT / name).is_file()]
    assert ROOT / "pyproject.toml" in files
    assert not [(str(path), word.decode()) for path in files for word in words if word in path.read_bytes()]


def test_what_is_listed_as_slow_is_there() -> None:
    tests = Path(__file__).parent
    listed = (tests / "slow.txt").read_text(encoding="utf-8").split()
    assert listed == sorted(set(listed))
    places = [line.partition("::") for line in listed]
    texts = {file: (tests / file).read_text(encoding="utf-8") for file, *_ in places}  # a line may name a whole file
    assert not [name for file, _, name in places if name and f"\ndef {name}(" not in texts[file]]


# Names that still mean two things.
TWICE = {"Step", "Run", "Trial", "Watch", "Cut"}


@cache
def classes() -> list[tuple[str, ast.ClassDef]]:
    """The public classes, each with its module."""
    nodes = [(name, node) for name, tree in trees().items() for node in ast.walk(tree)]
    return [(name, node) for name, node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def noun(name: str) -> str:
    """`SharedHead` → head: the last word of a name, as one of it is called."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", name)[-1].lower().removesuffix("s")


def test_every_class_is_called_by_a_word_of_the_glossary() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = {word.lower().removesuffix("s") for row in rows for word in re.findall(r"\w+", row)}
    # In the second column stands what a word is in the code: `Nested`.
    words |= set(map(noun, re.findall(r"`([A-Z]\w+)`", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))))
    raised = {"Exception", "Warning", "Pruned"}
    errors = {
        node.name for _, node in classes() if any(ast.unparse(b).endswith(("Error", *raised)) for b in node.bases)
    }
    unknown = {node.name: name for name, node in classes() if node.name not in errors and noun(node.name) not in words}
    assert not unknown, f"give them a name of docs/glossary.md, or say there what the word means: {unknown}"


def test_a_name_means_one_thing() -> None:
    modules: dict[str, set[str]] = {}
    for name, node in classes():
        if room(name) != "papers":  # where each paper has its rows and experiments
            modules.setdefault(node.name, set()).add(name)
    assert {name: places for name, places in modules.items() if len(places) > 1 and name not in TWICE} == {}

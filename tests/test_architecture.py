"""Imports point one way, along the pipeline. A new module finds its place in LAYERS, or these tests fail."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parent.parent
PACKAGE = "tfcam_jax"

# In the order the data flows. A module imports from its own layer and from earlier ones, within the limits below.
# A room (a folder of the package) is one entry.
LAYERS = (
    ("errors",),
    ("cams", "divergences", "saliency", "losses"),
    ("data", "models"),
    ("terms",),
    ("strategies",),
    ("optimizers", "steps"),
    ("devices",),
    ("metrics", "run", "report"),
    ("experiment",),
    ("inference",),
    ("training", "evaluation", "explanation", "export"),
    ("study", "predicted_maps", "sharing"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ROOMS = frozenset({"data", "models", "devices", "run", "metrics", "report", "study", "predicted_maps", "sharing"})
CORE = frozenset(LAYERS[1])
# Where configs are read and unpacked into plain values.
EDGE = frozenset({"experiment", "inference", "training", "study", "predicted_maps"})

# What launch scripts call.
VERBS = frozenset(
    {"training", "evaluation", "explanation", "export", "study", "data", "experiment", "predicted_maps", "sharing"}
    | {"metrics"}
)

# What a module may import of the package, where that is less than all that comes before it.
WITHIN = dict.fromkeys(CORE, CORE) | {
    "data": frozenset({"data", "errors", "saliency"}),
    "models": frozenset({"models", "cams", "errors"}),
    "terms": CORE,
    "strategies": CORE | {"terms", "errors"},
    "optimizers": frozenset({"errors"}),
    "steps": CORE | {"terms"},  # it is handed a model, an optimiser and a strategy
}
STANDARD_LIBRARY = frozenset(sys.stdlib_module_names)
# The libraries that one part of the package keeps to itself, or does without.
CORE_LIBRARIES = frozenset({"jax", "numpy"}) | STANDARD_LIBRARY  # jax itself needs numpy
NOT_IN_STEPS = frozenset({"optax", "ml_collections", "orbax", "tensorflow_datasets", "grain", "absl"})

NO_NAMES = re.compile(r"(^|_)(utils?|helpers?|managers?|common|misc|base|lib|stuff)($|_)")
TOP_LEVEL = frozenset({"pyproject.toml", "README.md", "LICENSE", PACKAGE, "configs", "launch", "tests"})


def sources(folder):
    """Every Python file of a top-level folder; none if the folder is not there."""
    return sorted((REPO / folder).rglob("*.py"))


def entry(path):
    """The name in LAYERS that a file of the package stands under; None for the package's own __init__."""
    parts = path.relative_to(REPO / PACKAGE).with_suffix("").parts
    return None if parts == ("__init__",) else parts[0]


def imported(tree, path, type_checking=False):
    """Absolute dotted names that a file imports at any depth, outside `if TYPE_CHECKING:` or only inside it."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = path.relative_to(REPO).parent.parts
    for node in ast.walk(tree):
        if (id(node) in guarded) != type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*start, *(node.module.split(".") if node.module else ())))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def imports_of(path, type_checking=False):
    return set(imported(ast.parse(path.read_text()), path, type_checking))


def inside(names):
    """The entries of LAYERS among imported names."""
    return {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}


def libraries(names):
    return {name.split(".")[0] for name in names} - {PACKAGE}


modules = pytest.mark.parametrize(
    "path", [path for path in sources(PACKAGE) if entry(path)], ids=lambda path: str(path.relative_to(REPO))
)


@modules
def test_every_module_has_its_place(path):
    assert entry(path) in RANK, (
        f"{path.relative_to(REPO)}: place {entry(path)!r} in LAYERS of tests/test_architecture.py"
    )


@modules
def test_imports_point_one_way(path):
    name = entry(path)
    allowed = WITHIN.get(name, {other for other, rank in RANK.items() if rank <= RANK[name]})
    wrong = inside(imports_of(path) | imports_of(path, type_checking=True)) - set(allowed)
    assert not wrong, f"{path.relative_to(REPO)} may not import {sorted(wrong)}; it may import {sorted(allowed)}"


@modules
def test_no_cycle_within_a_layer(path):
    """Of two modules of one layer at most one imports the other."""
    name, of = entry(path), {entry(other): other for other in sources(PACKAGE) if other.parent.name == PACKAGE}
    for neighbour in inside(imports_of(path)) & of.keys() - {name}:
        assert name not in inside(imports_of(of[neighbour])), f"{name} and {neighbour} import each other"


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_needs_jax_alone(name):
    path = REPO / PACKAGE / f"{name}.py"
    assert libraries(imports_of(path)) <= CORE_LIBRARIES
    assert libraries(imports_of(path, type_checking=True)) <= {"jaxtyping"}


@pytest.mark.parametrize("path", [path for path in [REPO / PACKAGE / "steps.py"] if path.exists()])
def test_steps_are_handed_what_they_run(path):
    wrong = libraries(imports_of(path)) & NOT_IN_STEPS
    assert not wrong, f"steps.py imports {sorted(wrong)}: hand it in"


@modules
def test_configs_are_read_at_the_edge_only(path):
    if entry(path) not in EDGE:
        names = imports_of(path) | imports_of(path, type_checking=True)
        assert "ml_collections" not in libraries(names), f"{path.relative_to(REPO)}: take plain keyword arguments"


@modules
def test_no_default_hides_in_a_get(path):
    """Every key stands in configs/default.py; `config.get(key, default)` would let a misspelt one pass."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = ast.unparse(node.func.value)
            assert not re.search(r"\bconfig\b", owner), f"{path.relative_to(REPO)}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", sorted((REPO / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_scripts_call_one_verb(path):
    """Besides it they know only the base of the errors that a user can mend, to print them without a traceback."""
    own = {"tfcam_jax.errors.UserError", "tfcam_jax.devices.distributed.initialize"}
    if path.name == "command_line.py":
        own |= {"tfcam_jax.devices.distributed.end_with_others", "tfcam_jax.run.terminal.escape_streams"}
        own |= {"tfcam_jax.run.garbage.collect_rarely"}
    called = {name for name in imports_of(path) if name.startswith(f"{PACKAGE}.")} - own
    assert inside(called) <= VERBS and len(called) <= 2, f"{path.name}: {sorted(called)}"


@pytest.mark.parametrize("folder", [PACKAGE, "launch", "configs"])
def test_what_is_shipped_knows_no_tests(folder):
    for path in sources(folder):
        others = {"tests"} | ({"launch", "configs"} if folder == PACKAGE else set())
        wrong = {name.split(".")[0] for name in imports_of(path)} & others
        assert not wrong, f"{path.relative_to(REPO)} imports from {sorted(wrong)}"


@pytest.mark.parametrize("folder", [PACKAGE, "launch", "configs", "tests"])
def test_other_frameworks_are_for_comparison_alone(folder):
    for path in sources(folder):
        if path.is_relative_to(REPO / "launch/benchmark") or path.is_relative_to(REPO / "tests/parity"):
            continue
        wrong = libraries(imports_of(path)) & {"torch", "torchvision", "timm", "tensorflow", "keras", "tensorboardX"}
        assert not wrong, f"{path.relative_to(REPO)} imports {sorted(wrong)}"


def test_the_root_holds_the_method_and_the_verbs_alone():
    root = sorted(path.name for path in (REPO / PACKAGE).glob("*.py"))
    assert len(root) <= 17, f"new features live in a room, not in the package's root: {root}"
    rooms = {path.name for path in (REPO / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == ROOMS


def test_nothing_is_named_after_nothing():
    for folder in (PACKAGE, "configs", "launch", "tests"):
        for path in sources(folder):
            for part in path.relative_to(REPO).with_suffix("").parts:
                assert not NO_NAMES.search(part), f"{path.relative_to(REPO)}: name it after what lives there"


def test_the_package_imports_nothing_by_itself():
    assert libraries(imports_of(REPO / PACKAGE / "__init__.py")) <= STANDARD_LIBRARY


def test_the_top_level_holds_what_the_readme_says():
    done = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    names = {line.split("/")[0] for line in done.stdout.splitlines()}
    wrong = {name for name in names - TOP_LEVEL if not name.startswith(".")}
    assert not wrong, f"{sorted(wrong)} at the top level; it holds {sorted(TOP_LEVEL)} and dot files"
    assert {"pyproject.toml", "LICENSE", PACKAGE, "tests"} <= names

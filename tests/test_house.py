"""The rules of the house that a machine can check: who imports whom, one door for each outside thing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = {"vecdb": ".", "vecdb-client": "clients/python", "vecdb-server": "server"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "managers", "manager", "misc"}
MAX_LINES = 450

# One door each: the folders that may import a package.
DOORS = {
    "lmdb": ("vecdb/store/",),
    "isal": ("vecdb/crc.py",),
    "faiss": ("vecdb/index/",),
    "grpc": ("server/", "clients/python/"),
    "blake3": ("vecdb/backup/digests.py",),
    "obstore": ("vecdb/backup/",),
    "re2": ("vecdb/",),
    "msgspec": ("vecdb/", "server/"),
    "vecdb_client": ("clients/python/", "server/"),
    "vecdb_server": ("server/",),
}
# Not part of the product: measured against, demonstrated with, or made by.
OUTSIDE = ("bench/", "examples/", "tests/", "tools/")

LEAVES = (
    "errors", "types", "backup_types", "repair_types", "settings", "layout", "failpoints", "disk",
)  # fmt: skip


def tracked() -> list[Path]:
    """Files that belong to the repository, committed or about to be."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [path for path in map(Path, names) if (ROOT / path).is_file()]


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and not generated(path)]


def generated(path: Path) -> bool:
    return "v1" in path.parts


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of all that a file imports, wherever in it the import stands.

    Imports under `if TYPE_CHECKING` count too: a name that only types need is still knowledge.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if is_module(inner) else base


def module_name(path: Path) -> str:
    parts = list(path.with_suffix("").parts)
    for folder in (["clients", "python"], ["server"]):
        if parts[: len(folder)] == folder:
            parts = parts[len(folder) :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(dotted: str) -> bool:
    path = Path(*dotted.split("."))
    return any(
        (ROOT / base / path).with_suffix(".py").exists() or (ROOT / base / path).is_dir()
        for base in (".", "server", "clients/python")
    )


def engine_graph() -> dict[str, set[str]]:
    """Each module of the engine with the engine modules it imports."""
    graph = {}
    for path in python_files():
        if path.parts[0] == "vecdb":
            name = module_name(path)
            found = {one for one in imports(path) if one.split(".")[0] == "vecdb"}
            graph[name] = found - {name}
    return graph


def test_each_outside_package_has_one_door() -> None:
    """lmdb, faiss, grpc and the like are imported only where the map says."""
    wrong = [
        f"{path} imports {name}"
        for path in python_files()
        if not str(path).startswith(OUTSIDE)
        for name in imports(path)
        if name.split(".")[0] in DOORS and not str(path).startswith(DOORS[name.split(".")[0]])
    ]
    assert not wrong


def test_the_engine_knows_nothing_of_the_network() -> None:
    """The engine imports neither gRPC nor protobuf, nor the client, nor the server."""
    network = ("grpc", "google.protobuf", "vecdb_client", "vecdb_server")
    wrong = [
        f"{path} imports {name}"
        for path in python_files()
        if path.parts[0] == "vecdb"
        for name in imports(path)
        if name.startswith(network)
    ]
    assert not wrong


def test_the_client_needs_only_numpy_grpc_and_protobuf() -> None:
    """The client imports the standard library, numpy, grpc, protobuf and itself, nothing else."""
    allowed = {"numpy", "grpc", "google", "vecdb_client", *sys.stdlib_module_names}
    wrong = [
        f"{path} imports {name}"
        for path in python_files()
        if str(path).startswith("clients/python/")
        for name in imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong


def test_engine_imports_make_no_loop() -> None:
    """No module of the engine imports itself on a way through others."""
    graph = engine_graph()
    assert graph, "no engine modules were found"
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                walk(target, (*way, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_imports_run_down_the_list_of_the_map() -> None:
    """ARCHITECTURE lists every module and folder of the engine once, below all that import it."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"Imports run one way.*?```\n(.*?)```", text, re.DOTALL)
    rows = [re.findall(r"\w+", row) for row in listed.split("->")]
    place = {name: number for number, row in enumerate(rows) for name in row}
    graph: dict[str, set[str]] = {}
    for name, targets in engine_graph().items():
        if name != "vecdb":
            inner = {target.split(".")[1] for target in targets - {"vecdb"}}
            graph.setdefault(name.split(".")[1], set()).update(inner)
    assert sorted(name for row in rows for name in row) == sorted(graph)
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets - {name}
        if place[target] <= place[name]
    ]
    assert not wrong


def test_leaves_know_only_leaves() -> None:
    """errors, types of all kinds, settings, layout, failpoints and disk import of the engine only each other."""
    graph = engine_graph()
    allowed = {"vecdb", *(f"vecdb.{leaf}" for leaf in LEAVES)}
    wrong = {leaf: graph.get(f"vecdb.{leaf}", set()) - allowed for leaf in LEAVES}
    assert not {leaf: names for leaf, names in wrong.items() if names}


def test_layers_know_only_what_is_below() -> None:
    """A device knows no index, the index no store and no filter, the store no index; none a collection."""
    above = ("vecdb.collection", "vecdb.database")
    rules = {
        "vecdb.device": ("vecdb.index", "vecdb.store", "vecdb.filters", "vecdb.columns", *above),
        "vecdb.index": ("vecdb.store", "vecdb.filters", "vecdb.columns", *above),
        "vecdb.store": ("vecdb.index", "vecdb.filters", *above),
        "vecdb.filters": ("vecdb.index", "vecdb.store", *above),
        "vecdb.columns": ("vecdb.index", "vecdb.filters", *above),
        "vecdb.metadata": ("vecdb.index", "vecdb.store", "vecdb.filters", "vecdb.columns", *above),
        "vecdb.backup": ("vecdb.index", "vecdb.filters", "vecdb.device", *above),
        "vecdb.collection": ("vecdb.database",),
    }
    wrong = [
        f"{name} imports {target}"
        for name, targets in engine_graph().items()
        for layer, forbidden in rules.items()
        if within(name, (layer,))
        for target in targets
        if within(target, forbidden)
    ]
    assert not wrong


def test_durable_steps_have_one_door() -> None:
    """No module of the engine but `disk` writes at a place of a file, syncs, renames, removes, makes folders or commits
    to LMDB itself; nor do keys and exports of the server. `backup/direct.py` writes between points of `written_aside`."""
    beside = {Path(f"server/vecdb_server/{name}.py") for name in ("keys", "cli_export")}
    found = [
        f"{path}:{node.lineno} {ast.unparse(node.func)}"
        for path in python_files()
        if (path.parts[0] == "vecdb" and path != Path("vecdb/disk.py")) or path in beside
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and changes_the_disk(node)
        if (path.name, ast.unparse(node.func)) != ("direct.py", "os.write")
    ]
    assert not found, f"do it through vecdb.disk, with failpoints: {found}"


def changes_the_disk(call: ast.Call) -> bool:
    """Whether it looks like a call of the file system or of LMDB that `disk` has a function for.

    Path.rename, Path.replace and Transaction.commit share their names with methods of ours and of
    `str`, which take other numbers of arguments.
    """
    if not isinstance(call.func, ast.Attribute):
        return False
    owner, name, given = ast.unparse(call.func.value), call.func.attr, len(call.args)
    if owner in ("disk", "dataclasses") or (call.func.attr == "replace" and owner == "self._tail"):
        return False
    always = {"fsync", "fdatasync", "unlink", "rmdir", "rmtree", "mkdir", "makedirs", "renames"}
    always |= {"touch", "write_bytes", "write_text", "copytree", "copyfile", "copy2", "move"}
    return (
        name in always
        or (
            owner == "os" and name in ("rename", "replace", "remove", "truncate", "link", "symlink")
        )
        or (owner == "os" and name in ("write", "writev", "pwrite", "pwritev"))
        or (name in ("rename", "replace") and given == 1 and not call.keywords)
        or (name == "commit" and given == 0)
        or (name == "sync" and given <= 1)
    )


@pytest.mark.parametrize(
    "text",
    [
        *("os.fsync(n)", "os.replace(a, b)", "path.replace(b)", "path.rename(b)", "path.unlink()"),
        *("shutil.rmtree(p)", "txn.commit()", "env.sync(True)", "p.mkdir()", "p.touch()"),
        *("os.pwrite(n, b, 0)", "os.write(n, b)"),
    ],
)
def test_the_door_of_durable_steps_is_watched(text: str) -> None:
    """The rule above sees each way of going round the door."""
    (call,) = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert changes_the_disk(call)


def within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def test_no_room_for_odds_and_ends() -> None:
    """No module is called utils, common, helpers or the like: such a name answers no question."""
    assert not [
        path for path in python_files() if set(path.with_suffix("").parts) & FORBIDDEN_NAMES
    ]


def test_files_stay_readable() -> None:
    """No file of code is longer than 450 lines; generated ones do not count."""
    lengths = {
        str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in python_files()
    }
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_three_distributions_have_one_version() -> None:
    """All three carry the same version, and the server asks for exactly that of the other two."""
    projects = {
        name: tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        for name, folder in PROJECTS.items()
    }
    assert {name: project["name"] for name, project in projects.items()} == {n: n for n in PROJECTS}
    versions = {project["version"] for project in projects.values()}
    assert len(versions) == 1
    version = versions.pop()
    wanted = {f"vecdb=={version}", f"vecdb-client=={version}"}
    assert wanted <= set(projects["vecdb-server"]["dependencies"])
    for path in python_files():
        for found in re.findall(r'^__version__ = "(.*)"', (ROOT / path).read_text(), re.MULTILINE):
            assert found == version, path


_INSTALLED = ("cpu", "gpu", "gpu-cuvs", "dev", "audit", "backup", "fast", "trace")
"""Extras that `make` or the Dockerfile installs."""


def test_every_dependency_is_pinned() -> None:
    """constraints.txt gives one exact version for every package that `make venv`, `make audit` and the images install."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert not [
        pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin)
    ]
    pinned = {normal(pin.partition("==")[0]) for pin in pins}
    wanted = set()
    for folder in PROJECTS.values():
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        chosen = [one for extra in _INSTALLED for one in extras.get(extra, [])]
        needed = [*project["dependencies"], *chosen]
        wanted |= {normal(re.split(r"[<>=!~\[; ]", one)[0]) for one in needed}
    assert not wanted - pinned - set(PROJECTS)


@pytest.mark.parametrize("name", ["requirements.txt", "vectordbbench/requirements.txt"])
def test_benchmarks_install_what_vecdb_runs_on(name: str) -> None:
    """Each file of requirements, beside which our distributions are installed without their dependencies, has these."""
    lines = (ROOT / "bench" / name).read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines}
    for folder in PROJECTS.values():
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        needed = {normal(re.split(r"[<>=!~\[; ]", one)[0]) for one in project["dependencies"]}
        assert not needed - pinned - set(PROJECTS)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_client_copies_are_fresh() -> None:
    """errors.py and the types.py of all kinds in the client are the engine's, line by line, under one line of header."""
    for name in ("errors.py", "types.py", "backup_types.py", "repair_types.py"):
        source = (ROOT / "vecdb" / name).read_text(encoding="utf-8")
        copy = (ROOT / "clients/python/vecdb_client" / name).read_text(encoding="utf-8")
        header, _, rest = copy.partition("\n")
        assert header.startswith("# "), name
        assert rest == source, f"{name} is stale: run make stubs"


def test_every_setting_is_documented() -> None:
    """A page of the documentation names every setting of the engine and of the server."""
    from vecdb_server.settings import SETTINGS

    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages if page.exists())
    assert not [row.name for row in SETTINGS if f"`{row.name}`" not in text]


def test_nothing_tracked_names_a_machine_or_a_registry() -> None:
    """No file of the repository holds a path of one machine or the host of a package registry."""
    registries = "|".join(
        [
            "index" + "-url",
            "files.python" + "hosted",
            "py" + "pi.org",
            "deb.deb" + "ian.org",
            "registry.npm" + "js",
        ]
    ).replace(".", r"\.")
    machine = r"(?<![\w.])/(?:work|farm|ro" + r"ot|home/\w+|Users/\w+)/[\w.-]+"
    found = []
    for path in tracked():
        data = (ROOT / path).read_bytes()
        if b"\0" in data or path == Path("tests/test_house.py"):
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if re.search(f"{registries}|{machine}", line):
                found.append(f"{path}:{number}: {line.strip()[:80]}")
    assert not found


def test_no_unfinished_work() -> None:
    """No stub, no forgotten note, no swallowed exception, no test that cannot fail."""
    pattern = re.compile(
        r"#\s*(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b|NotImplemented" + r"Error"
        r"|except(?: Exception)?:\s*pass\b|assert " + r"True\b"
    )  # fmt: skip
    found = [
        f"{path}:{number}"
        for path in python_files()
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_every_test_says_what_is_promised() -> None:
    """Each test function begins with a docstring or a comment."""
    missing = []
    for path in python_files():
        if path.parts[0] != "tests":
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            before_body = lines[node.body[0].lineno - 2].strip()
            told = ast.get_docstring(node) or before_body.startswith("#")
            if node.name.startswith("test_") and not told:
                missing.append(f"{path}:{node.lineno} {node.name}")
    assert not missing


@pytest.mark.parametrize("name", PROJECTS)
def test_wheels_hold_the_whole_package(name: str, tmp_path: Path) -> None:
    """A wheel has every module of its package, py.typed and compiled kernels, and nothing of the other two."""
    folder = ROOT / PROJECTS[name]
    package = name.replace("-", "_")
    # Built from a copy: building leaves folders beside the sources.
    names = [path for path in tracked() if (ROOT / path).is_relative_to(folder / package)]
    extra = [Path(PROJECTS[name], one) for one in ("pyproject.toml", "LICENSE")]
    for path in [*names, *(one for one in extra if (ROOT / one).exists())]:
        copy = tmp_path / "source" / (ROOT / path).relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / path).read_bytes())
    backend = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", backend, str(tmp_path)],
        cwd=tmp_path / "source",
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {one for one in archive.namelist() if ".dist-info/" not in one}
    wanted = {str((ROOT / path).relative_to(folder)) for path in names}
    assert inside == {one for one in wanted if one.endswith((".py", ".pyi", "py.typed", ".ptx.xz"))}

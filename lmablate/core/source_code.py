"""Identify the source code of a run: code that is not as shipped counts in the run's id.

``shipped.json`` holds a fingerprint of every top-level statement of the modules that decide numbers, as they were when
`identity.SCIENCE_VERSION` was set. A run of these alone is identified by that version. Code that differs counts by its
content: a changed statement for every run that uses its module, an added class for the runs that use it, a user's
module for the runs whose components it defines, with its imports from its own package. Formatting, comments and
docstrings do not count, since syntax trees are compared.

``python -m lmablate.core.source_code`` renews the file, after a change that moves no number, or together with a new
science version.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from lmablate.core.axes import PARTS
from lmablate.core.errors import ConfigError, exit_on_config_error

HERE = Path(__file__).resolve().parents[1]
MANIFEST = Path(__file__).with_name("shipped.json")
# Folders and files below lmablate/ that decide the numbers of a run.
SCIENCE = (
    *("model", "objective", "data/tasks", "data/tokens.py", "evaluate/validation.py", "evaluate/scoring.py"),
    *("training/trainer.py", "training/optim.py", "training/divergence.py", "training/gang.py"),
)
NEW = "a new file"
# Modules of the axes: a run uses only those that its options name.
AXIS_MODULES = tuple(f"lmablate.model.{axis}" for axis in PARTS)


def fingerprint(path: Path) -> str | None:
    """Return twelve hexadecimal digits of the code of a file, or None if it cannot be read or parsed."""
    source = _read(path)
    return None if source is None else source.fingerprint


def fingerprints(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the fingerprints of the modules that decide numbers of a run and are not as shipped. `parts` are the
    (module, name) of the run's components. Raises ConfigError for one whose source cannot be read."""
    return dict(sorted(_Closure(parts).counted().items()))


def describe(code: Mapping[str, str]) -> str:
    """Return text that names these modules, with the statements that differ where known."""
    texts = []
    for module in code:
        state = _states().get(module)
        names = sorted(state.different) if state is not None else []
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        texts.append(f"{module} ({', '.join(names[:3])}{more})" if names else module)
    return ", ".join(texts)


def changed_since(code: Mapping[str, str] | None) -> list[str]:
    """Return the modules of a row's `code` whose source has changed since. Imports nothing, and skips modules not found
    here."""
    changed = []
    for module, before in (code or {}).items():
        path = _find(module)
        if path is not None and (now := fingerprint(path)) is not None and now != before:
            changed.append(module)
    return changed


def is_shipped(target: Any) -> bool:
    """Return whether a class or function is ours and unchanged, so that its own cost formulas can be trusted."""
    module, name = place_of(target)
    state = _states().get(module)
    return state is not None and not state.changed and name not in state.different


def snapshot() -> None:
    """Read the source of imported modules now, for a process that imports once and starts runs later."""
    _states()


def place_of(target: Any) -> tuple[str, str]:
    """Return the module of a class or function, and the top-level name that defines it."""
    return getattr(target, "__module__", None) or "", getattr(target, "__qualname__", "").split(".")[0]


# --- The content of a file ---------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """The code of a file: its top-level statements as (names, fingerprint), and its imports as (module, name or None)."""

    statements: list[tuple[tuple[str, ...], str]]
    imports: list[tuple[str, str | None]]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(print_ for _, print_ in self.statements).encode()).hexdigest()[:12]


@cache
def _read(path: Path, module: str = "") -> Source | None:
    """Read a file once in a process, soon after the import: the loaded code does not change with the file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    statements, imports = [], []
    for node in ast.walk(tree):
        imports += _imports(node, module, is_package=path.name == "__init__.py")
    for node in tree.body:
        statements += _prints(node)
    return Source(statements, imports)


def _prints(node: ast.stmt) -> list[tuple[tuple[str, ...], str]]:
    """Return the names bound by a statement with its fingerprint; one entry a name for an import, none for a docstring."""
    if _is_docstring(node) or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
        return []
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return []
    if isinstance(node, ast.ImportFrom):
        source = f"{'.' * node.level}{node.module or ''}"
        if source == "__future__":
            return []
        return [((a.asname or a.name,), _digest(["import", source, a.name, a.asname])) for a in node.names]
    if isinstance(node, ast.Import):
        return [((a.asname or a.name,), _digest(["import", a.name, a.asname])) for a in node.names]
    names: tuple[str, ...] = ()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = (node.name,)
    elif isinstance(node, ast.Assign):
        names = tuple(each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name))
    elif isinstance(node, ast.AnnAssign | ast.AugAssign) and isinstance(node.target, ast.Name):
        names = (node.target.id,)
    return [(names, _digest(_plain(node)))]


def _plain(node: Any) -> Any:
    """Return a syntax tree as lists, equal under all versions of Python: no positions, docstrings or absent fields."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return node if node is None or isinstance(node, str | int | float | bool) else repr(node)
    fields = {}
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list) and value and _is_docstring(value[0]):
            value = value[1:]
        if value is not None and value != [] and name not in ("kind", "type_comment", "ctx"):
            fields[name] = _plain(value)
    return [type(node).__name__, fields]


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _imports(node: ast.AST, module: str, *, is_package: bool) -> list[tuple[str, str | None]]:
    if isinstance(node, ast.Import):
        return [(alias.name, None) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = module.split(".") if is_package else module.split(".")[:-1]
    base = base[: len(base) - node.level + 1] if node.level else []
    source = ".".join([*base, *([node.module] if node.module else [])])
    return [(source, alias.name) for alias in node.names]


# --- Our own modules, against what was shipped ----------------------------------------------------------------------------


@dataclass
class State:
    """The difference of a module of ours from the shipped one. `different`: names of new or changed statements;
    `changed`: whether a shipped statement has changed or gone, so that the whole module may act differently."""

    different: set[str] = field(default_factory=set)
    changed: bool = False


@cache
def science_modules() -> dict[str, Path]:
    """Return the modules that decide numbers, with their files."""
    files = [path for place in SCIENCE for path in sorted(_files(HERE / place))]
    return {module_name(path): path for path in files}


def _files(place: Path) -> Iterable[Path]:
    return place.rglob("*.py") if place.is_dir() else [place]


def module_name(path: Path) -> str:
    parts = path.relative_to(HERE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _states() -> dict[str, State]:
    shipped: dict[str, Any] = json.loads(MANIFEST.read_text())
    return {
        module: _compared(module, path, shipped[module]) if module in shipped else State({NEW}, changed=False)
        for module, path in science_modules().items()
    } | {module: State(changed=True) for module in shipped if module not in science_modules()}


def _compared(module: str, path: Path, shipped: dict[str, Any]) -> State:
    if _bytes(path) == shipped["bytes"]:
        return State()
    source = _read(path, module)
    if source is None:
        return State(changed=True)
    left = list(shipped["statements"])
    new: list[tuple[tuple[str, ...], str]] = []
    for names, print_ in source.statements:
        if print_ in left:
            left.remove(print_)
        else:
            new.append((names, print_))
    bound = [name for names, _ in source.statements for name in names]
    twice = any(bound.count(name) > 1 for names, _ in new for name in names)
    nameless = any(not names for names, _ in new)
    return State({name for names, _ in new for name in names}, changed=bool(left) or twice or nameless)


def _bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def manifest() -> dict[str, Any]:
    """Return the content of shipped.json for the present code."""
    out = {}
    for module, path in science_modules().items():
        source = _read(path, module)
        assert source is not None, path
        out[module] = {"bytes": _bytes(path), "statements": [print_ for _, print_ in source.statements]}
    return out


# --- The modules of a run -----------------------------------------------------------------------------------------------


class _Closure:
    """The modules that count: those of a run's components, and those that every run uses."""

    def __init__(self, targets: Iterable[tuple[str, str]]) -> None:
        self.targets = list(targets)
        self.packages = {module.partition(".")[0] for module, _ in self.targets} - {"lmablate", "torch", ""}
        self.seen: set[tuple[str, str | None]] = set()
        self.found: dict[str, str] = {}

    def counted(self) -> dict[str, str]:
        if self._all_shipped:
            return {}
        for module, name in self.targets:
            self._visit(module, name)
        for module, state in _states().items():
            if not module.startswith(AXIS_MODULES) and NEW not in state.different:  # a new file counts where it is used
                self._visit(module, None)
        return self.found

    @cached_property
    def _all_shipped(self) -> bool:
        """Return whether nothing differs: the common case, in which no file has to be parsed."""
        ours = all(module.startswith(("lmablate.", "torch.")) or not module for module, _ in self.targets)
        return ours and not any(state.changed or state.different for state in _states().values())

    def _visit(self, module: str, name: str | None) -> None:
        if (module, name) in self.seen:
            return
        self.seen.add((module, name))
        state = _states().get(module)
        user = module.partition(".")[0] in self.packages
        if state is None and not user:
            return
        path = _find(module)
        source = None if path is None else _read(path, module)
        if path is None or source is None:
            if user or (state is not None and state.changed):
                self.found[module] = _opaque(module, path, name)
            return
        if path.name == "__init__.py" and name is not None:
            # The package re-exports the name from one of its modules: visit that module.
            for imported, original in source.imports:
                if original == name and imported != module:
                    self._visit(imported, name)
        if user or (state is not None and (state.changed or self._uses_new(state, module, name))):
            self.found[module] = source.fingerprint
        for imported, original in source.imports:
            submodule = f"{imported}.{original}" if original else imported
            if original and self._is_module(submodule):
                self._visit(submodule, None)
            else:
                self._visit(imported, original)

    def _is_module(self, name: str) -> bool:
        return name in _states() or (name.partition(".")[0] in self.packages and _find(name) is not None)

    @staticmethod
    def _uses_new(state: State, module: str, name: str | None) -> bool:
        return NEW in state.different or (name is not None and name in state.different)


def _opaque(module: str, path: Path | None, name: str | None) -> str:
    """Return the fingerprint of a module without Python source: the bytes of a compiled file, in a notebook the source
    of `name`."""
    if path is not None and path.is_file():
        return _bytes(path)
    try:
        text = textwrap.dedent(inspect.getsource(getattr(sys.modules[module], name or "")))
        return _digest([_plain(node) for node in ast.parse(text).body])
    except (KeyError, AttributeError, OSError, TypeError, SyntaxError):
        raise ConfigError(
            f"{module}.{name or ''}: its source cannot be read, so that an edit would not be noticed: put it into a file of a package"
        ) from None


def _find(module: str) -> Path | None:
    """Return the file of a module without importing it: an imported one's own, else the one that an import would use."""
    if module in _states():
        return science_modules().get(module)
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded, "__file__", None):
        return Path(str(loaded.__file__))
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # runs nothing, as that of a submodule would
    except (ImportError, ValueError):
        return None
    for i, _ in enumerate(rest, 2):
        if spec is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *rest][:i]), list(spec.submodule_search_locations or []))
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Renew shipped.json; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lmablate.core.source_code",
        description="Note the present code of lmablate as what is shipped: for its developers, after a change that moves no number, or "
        "together with a new SCIENCE_VERSION.",
    )
    parser.parse_args(argv)
    lines = (f"{json.dumps(module)}: {json.dumps(entry)}" for module, entry in manifest().items())
    MANIFEST.write_text("{" + ",\n".join(lines) + "}\n")
    print(f"wrote {MANIFEST}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

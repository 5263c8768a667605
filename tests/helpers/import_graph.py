"""Who imports whom in this repository, read from the source, so that imports inside functions count too."""

import ast
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("exp_tools", "stages", "benchmarks")


class Modules:
    """The modules under the project's packages, by dotted name, and what each imports of them.

    A package is the module of its `__init__.py`; `import_module(f"exp_tools.models.{name}")` is an import of
    "exp_tools.models.*".
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, Path] = {}
        for package in PACKAGES:
            for file in sorted((root / package).rglob("*.py")):
                parts = file.relative_to(root).with_suffix("").parts
                self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file

    def tree(self, module: str) -> ast.Module:
        return ast.parse(self.files[module].read_text(encoding="utf-8"))

    def path(self, module: str) -> str:
        """The module's file as dvc.yaml spells it."""
        return self.files[module].relative_to(self.root).as_posix()

    def package(self, module: str) -> str:
        return module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]

    def imports(self, module: str) -> set[str]:
        """Names that the module imports, ours and others': modules, not what is inside them."""
        names: set[str] = set()
        for node in ast.walk(self.tree(module)):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node.module or "", node.level, module)
                names.update(
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in self.files else base for alias in node.names
                )
            elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
                names.add(self._dynamic(node, module))
        return names

    def closure(self, start: Iterable[str]) -> set[str]:
        """Our modules that an import of `start` can lead to, the dynamic ones ("package.*") by that name only."""
        seen: set[str] = set()
        waiting = list(start)
        while waiting:
            module = waiting.pop()
            if module not in seen and (module in self.files or self.expand(module)):
                seen.add(module)
                waiting += self.imports(module) if module in self.files else []
        return seen

    def expand(self, pattern: str) -> set[str]:
        """The modules that "package.*" stands for."""
        if not pattern.endswith(".*"):
            return set()
        return {name for name in self.files if name.rpartition(".")[0] == pattern[:-2]}

    def _absolute(self, name: str, level: int, module: str) -> str:
        if not level:
            return name
        parts = self.package(module).split(".")
        return ".".join(parts[: len(parts) - level + 1] + ([name] if name else []))

    def _dynamic(self, call: ast.Call, module: str) -> str:
        """The name that a call of import_module gives, with `*` for what only the running program knows."""
        pieces = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
        name = "".join(
            str(piece.value)
            if isinstance(piece, ast.Constant)
            else self.package(module)
            if isinstance(piece, ast.FormattedValue) and ast.unparse(piece.value) == "__package__"
            else "*"
            for piece in pieces
        )
        if name.startswith("*"):
            raise AssertionError(f"{module} imports a module whose name nobody can read here: {ast.unparse(call)}")
        return self.package(module) + name if name.startswith(".") else name


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")

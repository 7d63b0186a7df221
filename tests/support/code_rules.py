"""Checkers of `tests/test_layout.py`: each reads a module's text or syntax tree and returns what breaks a rule."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator


Function = ast.FunctionDef | ast.AsyncFunctionDef

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "numpy.load", "yaml.load"}
SPECIAL = {"__init__", "__call__"}
VAGUE_WORDS = {"What", "Of", "How", "Whether", "Where"}
MUTABLE_CALLS = {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict"}
WRITING_METHODS = {
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "add", "discard"),
    *("update", "setdefault", "popitem", "appendleft", "popleft", "intersection_update", "difference_update"),
}


def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, Function]]:
    """Functions and methods with their dotted names; a nested one comes after the one that holds it."""
    found: list[tuple[str, Function]] = []
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, Function):
            found.append((f"{prefix}{node.name}", node))
            inner = f"{prefix}{node.name}.<locals>."
        elif isinstance(node, ast.ClassDef):
            inner = f"{prefix}{node.name}."
        found += functions(node, inner)
    return found


def longer_than(files: dict[str, str], *, max_file_lines: int, max_function_lines: int) -> set[str]:
    """Files, and functions as `file.py:Class.function`, with more lines than allowed."""
    names = set()
    for name, text in files.items():
        if len(text.splitlines()) > max_file_lines:
            names.add(name)
        for function, node in functions(ast.parse(text)):
            if (node.end_lineno or 0) - node.lineno + 1 > max_function_lines:
                names.add(f"{name}:{function}")
    return names


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Local names and their full ones: `np` -> numpy, `load` -> torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _called_name(node: ast.expr, names: dict[str, str]) -> str | None:
    """Full dotted name of a callee that was imported or is a builtin."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
        owner = node.value
        known = not isinstance(owner, ast.Name) or owner.id in names
        return f"{_called_name(owner, names)}.{node.attr}" if known else None
    return None


def unsafe(tree: ast.AST) -> list[str]:
    """Uses of modules and calls that can run code hidden in a file."""
    names, found = _imported_names(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [m for m in [node.module or ""] if m.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            name = _called_name(node.func, names) or ""
            found += [name] if name in FORBIDDEN_CALLS else []
            found += [f"allow_pickle in {name}" for k in node.keywords if k.arg == "allow_pickle"]
    return found


def names_ignore_index(tree: ast.AST) -> list[int]:
    """Lines that name -100 or `IGNORE_INDEX`."""
    lines = []
    for node in ast.walk(tree):
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if (
            (isinstance(node, ast.Name) and node.id == "IGNORE_INDEX")
            or (isinstance(node, ast.Attribute) and node.attr == "IGNORE_INDEX")
            or (isinstance(node, ast.alias) and node.name == "IGNORE_INDEX")
            or (negative and isinstance(node.operand, ast.Constant) and node.operand.value == 100)
        ):
            lines.append(getattr(node, "lineno", 0))
    return lines


def _is_public(dotted: str) -> bool:
    return all(not p.startswith(("_", "<")) or p in SPECIAL for p in dotted.split("."))


def with_kwargs(tree: ast.AST) -> list[str]:
    """Public functions with **kwargs, but for events of callbacks: transformers calls them with it."""
    events = {
        f"{node.name}.{child.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("TrainerCallback") for base in node.bases)
        for child in node.body
        if isinstance(child, Function) and child.name.startswith("on_")
    }
    public = [(name, node) for name, node in functions(tree) if _is_public(name)]
    return [name for name, node in public if node.args.kwarg and name not in events]


def many_positional(tree: ast.AST, *, most: int = 6) -> list[str]:
    """Functions with more positional parameters than `most`, `self` and `cls` not counted."""

    def count(node: Function) -> int:
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        return len(names) - (names[:1] in (["self"], ["cls"]))

    return [name for name, node in functions(tree) if count(node) > most]


def wide_tuples(tree: ast.AST, *, most: int = 3) -> list[str]:
    """Functions whose annotated result holds a tuple of more than `most` places that mean different things."""

    def is_wide(node: ast.AST) -> bool:
        if not isinstance(node, ast.Subscript) or ast.unparse(node.value) not in (
            "tuple",
            "Tuple",
            "typing.Tuple",
        ):
            return False
        return isinstance(node.slice, ast.Tuple) and len(node.slice.elts) > most

    def result_of(node: Function) -> ast.AST:
        if isinstance(node.returns, ast.Constant) and isinstance(node.returns.value, str):
            return ast.parse(node.returns.value)
        return node.returns or ast.Pass()

    return [name for name, node in functions(tree) if any(map(is_wide, ast.walk(result_of(node))))]


def docstrings(tree: ast.Module) -> list[str]:
    """Docstrings of the module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [docstring for docstring in found if docstring]


def begins_vaguely(docstring: str) -> bool:
    """A first word that neither says what is done nor names a thing."""
    return docstring.split()[0].strip("`,.:") in VAGUE_WORDS


def pairs(tree: ast.AST) -> list[int]:
    """Lines with several assignments in one, `a, b = x, y`."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    ]


def comment_lines(text: str) -> int:
    """Comments of a file, docstrings not counted."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of modules, and of the names that are imported from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_other_tests(tree: ast.AST) -> list[str]:
    """Imports from modules of tests, which keeps a test from being moved or run alone."""
    return [name for name in imported_modules(tree) if re.match(r"tests\.(\w+\.)*test_|test_", name)]


def module_state(tree: ast.Module) -> list[str]:
    """Writes to names of a module: `global`, caches, and lists, dicts and sets that some code changes."""
    found = [f"global {', '.join(n.names)}" for n in ast.walk(tree) if isinstance(n, ast.Global)]
    for name, node in functions(tree):
        decorators = [ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list]
        found += [f"cache of {name}" for d in decorators if d in ("cache", "lru_cache")]
    mutable = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_mutable(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return found + [f"{name} is written" for name in _written(tree) if name in mutable]


def _is_mutable(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).split(".")[-1] in MUTABLE_CALLS
    return isinstance(node, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp)


def _written(tree: ast.AST) -> Iterator[str]:
    """Names whose content is changed: `x[k] = v`, `del x[k]`, `x += y`, `x.append(y)`."""
    for node in ast.walk(tree):
        places: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            places = [target.value for target in node.targets if isinstance(target, ast.Subscript)]
        elif isinstance(node, ast.AugAssign):
            places = [node.target.value if isinstance(node.target, ast.Subscript) else node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            places = [node.func.value] if node.func.attr in WRITING_METHODS else []
        yield from (place.id for place in places if isinstance(place, ast.Name))


def begins_with(docstring: str) -> list[str]:
    """Modules named after "Begin with" in the docstring of a room: words in backticks that begin small."""
    _, _, rest = " ".join(docstring.split()).partition("Begin with ")
    return re.findall(r"`([a-z]\w*)`", rest)


def room_docstring_lacks(docstring: str | None) -> list[str]:
    """Parts that the docstring of a room must have and has not."""
    needed = {
        "a first sentence": r"^[A-Z`][^.]*[.:]",
        "what it may import": r"\b(May import|Rests on|Imports nothing)\b",
        "where to begin": r"\bBegin with `",
    }
    text = " ".join((docstring or "").split())
    return [part for part, pattern in needed.items() if not re.search(pattern, text)]

"""What is required of a `.pt2` before torch opens it: torch.export.load runs what it finds in one.

1. The archive holds the records that torch.export.save writes, under its names, and no others: old formats and compiled
   libraries are loaded as code. It is read with torch's own reader, and as no name comes twice, in capitals or not,
   torch finds the same records. Nothing is compressed.
2. No weight and no constant is stored as a pickle; the sample inputs are plain tensors.
3. The graph calls operators, and names nothing else that could be called.
4. Sizes and guards are arithmetic: torch evaluates them as Python.
5. Descriptions of nested inputs name no module: torch would import it.
6. All other names are words: torch writes Python source with them.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spm_compress.errors import SourceError, first_line

__all__ = ["described_types", "require_plain_program"]

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/.+|models/[\w.-]+\.json"
    r"|data/sample_inputs/[\w.-]+\.pt|data/(weights|constants)/((weight|tensor)_\d+|[\w.-]+_config\.json)"
)
_VALUES = re.compile(r"(weight|tensor)_\d+")
# torch's own operators and Python's, not any function of torch (torch.load is one).
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file|save)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|invoke_subgraph"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast|auto_functionalized(_v2)?)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|lshift|rshift|getitem)"
    r"|math\.[a-z]\w*|torch\.sym_[a-z]\w*"
)
_WORD = re.compile(r"[\w.+-]*")
_ARITHMETIC = re.compile(r"[\w\s.,'\[\]()<>=!&|~+*/%-]*", re.ASCII)
_MOST = 10_000  # characters of an expression
_LARGEST_POWER = 64
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift")
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Mod|Min|Max|Abs|min|max|floor|ceiling|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality"
    r"|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|And|Or|Not|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv"
    r"|CeilToInt|FloorToInt|CeilDiv|RShift|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat"
    r"|Identity|IsNonOverlappingAndDenseIndicator|" + "|".join(_POWERS)
)
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.keyword, ast.Name, ast.Constant),
    *(ast.Attribute, ast.Subscript, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context),
)


def require_plain_program(path: Path) -> None:
    """Look through a program. Raises SourceError for one that is damaged, or that torch would run code of."""
    try:
        _look_through(path)
    except pickle.UnpicklingError as error:
        raise SourceError(f"{path}: its sample inputs are not plain tensors, and are not loaded") from error
    except SourceError:
        raise
    except Exception as error:  # zipfile and torch raise many types for damaged archives
        raise SourceError(
            f"{path}: is not a whole program of torch.export ({first_line(error)}); export the model again"
        ) from error


def described_types(path: Path) -> set[str]:
    """Return the names of the types that a plain program's inputs and outputs are made of."""
    reader = torch._C.PyTorchFileReader(str(path))
    graphs = [reader.get_record(name).decode() for name in reader.get_all_records() if name.startswith("models/")]
    return {name for graph in graphs for name in re.findall(r'\\"type\\": \\"([\w.]+)\\"', graph)}


def _look_through(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise SourceError(f"{path}: is a compressed archive, which torch.export never writes; export it again")
        listed = [name.partition("/")[2] for name in archive.namelist()]
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    if "archive_format" not in names:
        raise SourceError(f"{path}: is not a program of torch.export of this format; export the model again")
    twice = [name for name, times in Counter(name.lower() for name in names).items() if times > 1]
    foreign = [name for name in names if not _RECORDS.fullmatch(name)]
    if twice or foreign or sorted(names) != sorted(listed):
        found = repr(foreign[0]) if foreign else f"{twice[0]!r} twice" if twice else "two lists of its records"
        raise SourceError(
            f"{path}: holds {found}, which torch.export.save does not write; it is not loaded, export the model again"
        )
    for name in names:
        if name.endswith("_config.json"):
            _require_values(path, json.loads(reader.get_record(name).decode())["config"])
        elif name.startswith("data/sample_inputs/"):
            torch.load(io.BytesIO(reader.get_record(name)), weights_only=True)
        elif name.startswith("models/"):
            _require_graph(path, json.loads(reader.get_record(name).decode()))


def _require_values(path: Path, config: dict[str, Any]) -> None:
    for key, entry in config.items():
        plain = isinstance(entry.get("tensor_meta"), dict) and _VALUES.fullmatch(entry["path_name"])
        if entry.get("use_pickle") or not plain:
            raise SourceError(
                f"{path}: {key!r} is stored as a pickle, which can run code and is not loaded; "
                "export the model with plain dense tensors"
            )
        _require_word(path, key)


def _require_graph(path: Path, value: Any, key: str = "") -> None:
    """Check every string of a graph by the key that it stands under (rules 3 to 6)."""
    match value:
        case dict():
            for name, each in value.items():
                _require_word(path, name)
                if name != "metadata":  # stack traces and the like, which torch only hands on
                    _require_graph(path, each, name)
        case list():
            for each in value:
                _require_graph(path, each, key)
        case str() if key in ("target", "as_operator"):
            if not _OPERATORS.fullmatch(value):
                raise SourceError(f"{path}: its graph calls {value!r}, which is no operator; it is not run")
        case str() if key in ("expr_str", "guards_code"):
            if not _is_arithmetic(value):
                raise SourceError(
                    f"{path}: its sizes are computed by {_short(value)}, which is no arithmetic; it is not run"
                )
        case str() if key in ("in_spec", "out_spec"):
            for word in _words(json.loads(value)):
                if word in ("__enum__", "default_factory_module"):
                    raise SourceError(f"{path}: its inputs or outputs import Python modules; they are not imported")
                _require_word(path, word)
        case str() if key not in ("as_string", "as_strings"):
            _require_word(path, value)


def _require_word(path: Path, text: str) -> None:
    if not _WORD.fullmatch(text):
        raise SourceError(f"{path}: {_short(text)} is no name of a tensor; torch would make Python source of it")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _words(value: Any) -> Iterator[str]:
    """Yield every string of a description of nested values; contexts are JSON in a string."""
    match value:
        case dict():
            for name, each in value.items():
                yield name
                yield from _words(json.loads(each) if name == "context" and isinstance(each, str) else each)
        case list():
            for each in value:
                yield from _words(each)
        case str():
            yield value


def _is_arithmetic(text: str) -> bool:
    """Whether an expression only computes with numbers, symbols and sizes of inputs, `L['x'].size()[0]`."""
    if len(text) > _MOST or not _ARITHMETIC.fullmatch(text) or "\n" in text:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_plain(node) for node in ast.walk(tree))


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return name.isidentifier()
        case ast.Call(func=ast.Name(id=name), args=args):
            small = name not in _POWERS or (len(args) == 2 and _is_small_power(*args))
            return bool(_FUNCTIONS.fullmatch(name)) and small and not any(_is_text(each) for each in args)
        case ast.Call(func=ast.Attribute(), args=[], keywords=[]):
            return True
        case ast.Call():
            return False
        case ast.Attribute(value=inner, attr=name):
            return name in ("size", "storage_offset", "stride") and isinstance(inner, ast.Subscript)
        case ast.Subscript(value=inner, slice=index):
            is_name = isinstance(inner, ast.Name) and inner.id == "L"
            return isinstance(index, ast.Constant) and (is_name or isinstance(inner, (ast.Subscript, ast.Call)))
        case ast.BinOp(left=base, op=ast.Pow() | ast.LShift(), right=power):
            return _is_small_power(base, power)
        case ast.BinOp(left=left, right=right):
            return not (_is_text(left) or _is_text(right))
        case ast.Name(id=name):
            return "__" not in name
    return isinstance(node, _NODES)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_small_power(base: ast.expr, power: ast.expr) -> bool:
    """Whether a power stays small enough to be computed: of a symbol, to a small number."""
    if isinstance(power, ast.Call) and len(power.args) == 1:  # Integer(2)
        (power,) = power.args
    if isinstance(power, ast.UnaryOp):
        power = power.operand
    small = isinstance(power, ast.Constant) and isinstance(power.value, (int, float)) and power.value <= _LARGEST_POWER
    powers = (ast.Pow, ast.LShift)
    return small and not any(
        isinstance(each, powers) or (isinstance(each, ast.Name) and each.id in _POWERS) for each in ast.walk(base)
    )

"""The floors and the rooms of third-party libraries, read from the source with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "mmssl.core": 0, "mmssl.losses": 0,
    "mmssl.data": 1, "mmssl.encoders": 1, "mmssl.heads": 1,
    "mmssl.objectives": 2, "mmssl.evaluation": 2, "mmssl.interop": 2,
    "mmssl.training": 3,
    "mmssl.recipe": 4,
    "pipelines": 5,
}  # fmt: skip
ROOMS = {
    "accelerate": ("mmssl/training/launch.py", "mmssl/training/step.py"),
    "timm": ("mmssl/encoders/timm_.py",),
    "open_clip": ("mmssl/encoders/open_clip_.py", "mmssl/interop/", "mmssl/data/text.py", "mmssl/data/tokenizers.py"),
    "transformers": ("mmssl/encoders/hf_", "mmssl/interop/", "mmssl/data/text.py", "mmssl/data/tokenizers.py"),
    "webdataset": ("mmssl/data/",),
    "av": ("mmssl/data/",),
    "torchcodec": ("mmssl/data/media_torchcodec.py",),
    "soundfile": ("mmssl/data/",),
    "pickle": (),
}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LOOP = 330, 70, 120


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def package(module: str) -> str | None:
    parts = module.split(".")
    name = ".".join(parts[:2]) if parts[0] == "mmssl" else parts[0]
    return name if name in FLOORS else None


def own_package(path: Path) -> str | None:
    return package(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_every_package_has_a_floor() -> None:
    folders = {f"mmssl.{p.name}" for p in (ROOT / "mmssl").iterdir() if (p / "__init__.py").exists()}
    assert folders == {name for name in FLOORS if name.startswith("mmssl.")}


def test_floors_import_only_lower_floors() -> None:
    wrong = []
    for path in sources("mmssl", "pipelines"):
        mine = own_package(path)
        if mine is None:  # mmssl/__init__.py, the public face
            continue
        for line, module in imports(path):
            theirs = package(module)
            if theirs is not None and theirs != mine and FLOORS[theirs] >= FLOORS[mine]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("mmssl", "pipelines")
        for line, module in imports(path)
        for library, rooms in ROOMS.items()
        if module.split(".")[0] == library and not path.relative_to(ROOT).as_posix().startswith(tuple(rooms) or ("-",))
    ]
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_nothing_imports_tools_or_tests() -> None:
    wrong = [
        f"{path}:{line}"
        for path in sources("mmssl", "pipelines")
        for line, m in imports(path)
        if m.split(".")[0] in ("tools", "tests")
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["mmssl/core", "mmssl/training"])
def test_the_core_names_no_case(folder: str) -> None:
    """No name or key of these floors is that of a modality, a method or a data set."""
    cases = {"image", "audio", "video", "caption", "simclr", "mae", "slip", "imagenet", "cifar", "digit"}
    wrong = []
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _names(node):
                words = set(name.lower().split("_"))
                if words & cases or (isinstance(node, ast.Constant) and name == "text"):
                    wrong.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {name}")
    assert not wrong, "\n".join(wrong)


def _names(node: ast.AST) -> list[str]:
    """Identifiers, and strings of one word (keys); sentences may speak of anything."""
    match node:
        case ast.Name():
            return [node.id]
        case ast.Attribute():
            return [node.attr]
        case ast.arg():
            return [node.arg]
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Constant() if isinstance(node.value, str) and " " not in node.value:
            return [node.value]
    return []


def test_files_and_functions_stay_readable() -> None:
    wrong = []
    for path in sources("mmssl", "pipelines", "tools"):
        text = path.read_text()
        lines = text.count("\n")
        limit = LONGEST_LOOP if path.as_posix().endswith("training/loop.py") else LONGEST_FILE
        if lines > limit:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {limit}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
                wrong.append(
                    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
                )
    assert not wrong, "\n".join(wrong)


def test_no_code_from_data() -> None:
    """Nothing unpickles, evaluates or runs a shell."""
    wrong = []
    for path in sources("mmssl", "pipelines"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"{path}:{node.lineno} {name}")
            if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load") or name.endswith(
                ".extractall"
            ):
                wrong.append(f"{path}:{node.lineno} {name}")
            if name == "np.load" and keywords.get("allow_pickle") != "False":
                wrong.append(f"{path}:{node.lineno} {name} without allow_pickle=False")
            if (
                keywords.get("shell") == "True"
                or keywords.get("allow_pickle") == "True"
                or keywords.get("trust_remote_code") == "True"
            ):
                wrong.append(f"{path}:{node.lineno} {name}")
    assert not wrong, "\n".join(wrong)


def test_files_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources("mmssl", "pipelines", "tools")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent

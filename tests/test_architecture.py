"""The floors and the rooms of third-party libraries, read from the source with `ast`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "mmssl.core": 0,
    "mmssl.losses": 1, "mmssl.data": 1, "mmssl.encoders": 1, "mmssl.heads": 1,
    "mmssl.curation": 2, "mmssl.datasets": 2, "mmssl.objectives": 2, "mmssl.evaluation": 2, "mmssl.interop": 2,
    "mmssl.training": 3,
    "mmssl.recipe": 4,
    "mmssl.reporting": 5, "mmssl.serving": 5,
    "pipelines": 6,
}  # fmt: skip
CONTRACT = (
    "mmssl.core",
    *(f"mmssl.data.{name}" for name in ("modality", "kernel", "inspection", "timeline", "corruption")),
)
SHARDS, MEDIA = "mmssl.data.shards", "mmssl.data.media"
MODALITIES, SAMPLES = "mmssl.data.modalities", "mmssl.data.samples"
SYNCHRONIZED, STREAM = "mmssl.data.synchronized", "mmssl.data.stream"
DRAWS = "mmssl.data.draws"
MAY_IMPORT = {
    "mmssl.data.modality": CONTRACT,
    "mmssl.data.corruption": ("mmssl.core",),
    "mmssl.data.kernel": ("mmssl.core", "mmssl.data.timeline"),
    "mmssl.data.inspection": ("mmssl.core",),
    "mmssl.data.timeline": ("mmssl.core",),
    SHARDS: CONTRACT,
    MEDIA: CONTRACT,
    MODALITIES: (*CONTRACT, MEDIA),
    SAMPLES: (*CONTRACT, SHARDS),
    DRAWS: CONTRACT,
    SYNCHRONIZED: (*CONTRACT, SAMPLES, DRAWS),
    STREAM: (*CONTRACT, SHARDS, SAMPLES, SYNCHRONIZED, DRAWS),
}
"""The rooms of the data floor: what of mmssl each may import besides itself."""
ABOVE = ("mmssl.curation", "mmssl.datasets", "mmssl.reporting", "mmssl.serving")
"""Imported by pipelines and tools only."""
ROOMS = {
    "accelerate": ("mmssl/core/compat.py", "mmssl/training/runtime/launch.py", "mmssl/training/runtime/trackers.py"),
    "timm": ("mmssl/encoders/adapters/timm.py",),
    "open_clip": (
        "mmssl/encoders/adapters/open_clip.py",
        "mmssl/encoders/adapters/hubs.py",
        "mmssl/interop/",
        "mmssl/data/modalities/",
    ),
    "transformers": ("mmssl/encoders/adapters/transformers", "mmssl/interop/", "mmssl/data/modalities/"),
    **dict.fromkeys(("tokenizers", "ftfy", "regex"), ("mmssl/data/modalities/clip_vocabulary.py",)),
    "webdataset": ("mmssl/data/shards/",),
    "av": ("mmssl/data/media/",),
    "torchcodec": ("mmssl/data/media/torchcodec.py",),
    "soundfile": ("mmssl/data/media/",),
    "peft": ("mmssl/encoders/lora.py",),
    "triton": ("mmssl/losses/fused_tiles.py",),
    "onnx": ("mmssl/interop/onnx.py",),
    "onnxscript": ("mmssl/interop/onnx.py",),
    "onnxruntime": ("mmssl/interop/onnx.py",),
    **dict.fromkeys(("fastapi", "starlette"), ("mmssl/serving/app.py",)),
    "uvicorn": ("pipelines/serve.py",),
    "usearch": ("mmssl/evaluation/embeddings/neighbour_index.py",),
    "pillow_heif": ("mmssl/data/modalities/pictures.py",),
    "pickle": (),
}
LIGHT = (
    "pipelines.cli", "pipelines.shards", "pipelines.check_recipe", "mmssl.recipe.validate", "mmssl.recipe.shipped",
    "mmssl.curation.pack", "mmssl.curation.pack_report", "mmssl.curation.filter", "mmssl.curation.check",
    "mmssl.curation.check_manifest", "mmssl.curation.stats", "mmssl.data.shards.sidecars",
)  # fmt: skip
"""What `mmssl shards` imports: neither these modules nor those that they import load one of `SLOW`."""
SLOW = (
    "torch", "torchvision", "torchaudio", "timm", "transformers", "open_clip", "accelerate", "safetensors", "sklearn", "scipy",
    "webdataset",
)  # fmt: skip
COMPILER = ("torch._dynamo", "torch._inductor", "torch.nn.attention.varlen")
"""Modules that import torch._dynamo."""
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LOOP = 330, 70, 120


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A file as `ast` reads it, read once for all tests of this file."""
    return ast.parse(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def _no_trees_afterwards() -> Iterator[None]:
    """Those of all files take much memory."""
    yield
    tree.cache_clear()


@cache
def imports(path: Path, *, when_loaded: bool = False) -> tuple[tuple[int, str], ...]:
    """Line and name of what a file imports; `when_loaded`: at its top level, without `if TYPE_CHECKING`."""
    return tuple(_imports(path, tree(path).body if when_loaded else ast.walk(tree(path))))


def _imports(path: Path, nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
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


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_of_the_data_floor_import_what_they_may(room: str) -> None:
    may = (room, *MAY_IMPORT[room])
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("mmssl/data")
        if _within(".".join(path.relative_to(ROOT).with_suffix("").parts), room)
        for line, module in imports(path)
        if module.startswith("mmssl.") and not any(_within(module, name) for name in may)
        if module != "mmssl.data"
    ]
    assert not wrong, "\n".join(wrong)


def _within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_every_file_of_the_data_floor_is_in_a_room() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources("mmssl/data")]
    homeless = [n for n in names if not any(_within(n, room) for room in MAY_IMPORT) and n != "mmssl.data.__init__"]
    assert not homeless


def test_bytes_of_samples_become_values_in_one_place() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("mmssl", "pipelines")
        if not path.relative_to(ROOT).as_posix().startswith(("mmssl/data/shards/", "mmssl/data/samples.py"))
        for line, module in imports(path)
        if module.endswith(".RawSample")
    ]
    assert not wrong, "\n".join(wrong)


def test_what_stands_above_a_run_is_imported_by_verbs_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("mmssl")
        for line, module in imports(path)
        for room in ABOVE
        if _within(module, room) and package(module) != own_package(path)
    ]
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


def test_commands_that_make_no_tensor_do_not_import_torch() -> None:
    """Such a library belongs into the function that needs it, and a name for annotations alone under `if TYPE_CHECKING`."""
    wrong, seen, waiting = [], set[str](), [*LIGHT]
    while waiting:
        name = waiting.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for line, module in imports(path, when_loaded=True):
            waiting.append(module)
            if module.split(".")[0] in SLOW:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert set(LIGHT) <= seen
    assert not wrong, "\n".join(wrong)


def test_the_compiler_of_torch_is_imported_where_it_is_used() -> None:
    """A recipe takes 2.4 s of a processor to import with torch._dynamo, and 1.7 s without; most commands compile nothing."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("mmssl", "pipelines")
        for line, module in imports(path, when_loaded=True)
        if module.startswith(COMPILER)
    ]
    assert not wrong, "\n".join(wrong)


def test_private_names_of_libraries_stay_in_compat() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources("mmssl", "pipelines", "tools")
        if path != ROOT / "mmssl/core/compat.py"
        for line, name in _foreign_private_names(tree(path))
    ]
    assert not wrong, "\n".join(wrong)


def _foreign_private_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Private names that a file uses and neither defines nor sets on `self`; those that Python documents are free."""
    nodes = list(ast.walk(module))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)} | {"_replace", "_exit"}
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                own.add(node.attr)
            case ast.ImportFrom() if not (node.module or "").startswith("mmssl"):
                words = [
                    word for name in (node.module or "", *(a.name for a in node.names)) for word in name.split(".")
                ]
                yield from ((node.lineno, word) for word in words if re.match("_[a-z]", word, re.IGNORECASE))
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr, re.IGNORECASE) and node.attr not in own:
            yield node.lineno, ast.unparse(node)


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
    cases = {
        "image",
        "audio",
        "video",
        "caption",
        "simclr",
        "barlow",
        "vicreg",
        "mae",
        "slip",
        "imagenet",
        "cifar",
        "digit",
    }
    wrong = []
    for path in sources(folder):
        for node in ast.walk(tree(path)):
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
        lines = path.read_text().count("\n")
        limit = LONGEST_LOOP if path.as_posix().endswith("training/loop.py") else LONGEST_FILE
        if lines > limit:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {limit}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
                wrong.append(
                    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
                )
    assert not wrong, "\n".join(wrong)


def test_no_code_from_data() -> None:
    """Nothing unpickles, evaluates or runs a shell."""
    wrong = []
    for path in sources("mmssl", "pipelines"):
        for node in ast.walk(tree(path)):
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
        if not ast.get_docstring(tree(path))
    ]
    assert not silent

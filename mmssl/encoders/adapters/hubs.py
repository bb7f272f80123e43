"""Find models by their names on a hub in the local cache. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from mmssl.core.errors import CheckpointError, did_you_mean

HUB = "hf-hub:"
"""Beginning of names of models on the Hugging Face hub, as in open_clip: hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION."""


def local_copy(source: Path) -> Path:
    """The file or folder that a source means.

    Args:
        source: a path, which is returned as it is; `hf-hub:ORG/NAME`: its folder in the cache of the hub; or open_clip's name and
            tag of weights, such as `ViT-B-32:laion2b_s34b_b79k`: the file in the cache of the hub, or in open_clip's.

    Raises:
        CheckpointError: the cache has no such model; says what it has.
    """
    name = str(source)
    if name.startswith(HUB):
        return _snapshot(name.removeprefix(HUB))
    if ":" in name and not source.exists():
        return _tagged(*name.split(":", 1))
    return source


def tag_settings(source: Path) -> tuple[str, dict[str, object]] | None:
    """open_clip's model name and its settings of weights with a tag; None: the source is no `MODEL:TAG`."""
    name, _, tag = str(source).partition(":")
    if not tag or source.exists() or str(source).startswith(HUB):
        return None
    from open_clip.pretrained import get_pretrained_cfg

    return name, dict(get_pretrained_cfg(name, tag))


def _snapshot(repository: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    cache = Path(constants.HF_HUB_CACHE)
    try:
        return Path(snapshot_download(name, revision=revision or None, cache_dir=cache, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"got {HUB}{repository}, which is not in the cache {str(cache)!r}, and nothing is downloaded: {_cached(cache)}; copy "
            "its folder there, or give the path of a folder"
        ) from error


def _cached(cache: Path) -> str:
    found = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    return f"it has {', '.join(found)}" if found else "it has no model"


def _tagged(model: str, tag: str) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained, list_pretrained_tags_by_model

    settings = get_pretrained_cfg(model, tag)
    if not settings:
        models = dict.fromkeys(name for name, _ in list_pretrained())
        known = list_pretrained_tags_by_model(model)
        wanted = (
            f"one of its tags {', '.join(known)}" if known else f"MODEL:TAG of open_clip{did_you_mean(model, models)}"
        )
        raise CheckpointError(f"got {model}:{tag}, which is no file; wanted {wanted}")
    places: list[Path] = []
    if settings.get("hf_hub"):
        repository, _, file = settings["hf_hub"].rpartition("/")
        wanted_files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        for name in wanted_files:
            found = try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(found, str):
                return Path(found)
        places.append(Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}")
    if settings.get("url"):
        places.append(Path.home() / ".cache/clip" / settings["url"].rpartition("/")[2])
        if places[-1].is_file():
            return places[-1]
    raise CheckpointError(
        f"got {model}:{tag}, whose file is not here, and nothing is downloaded: wanted {' or '.join(map(str, places))}"
    )

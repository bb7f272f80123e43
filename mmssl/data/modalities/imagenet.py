"""ImageNet's class names and CLIP's 80 prompt templates, as open_clip's package has them."""

from __future__ import annotations


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k that CLIP uses, by class number; two of them are there twice."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def openai_templates() -> tuple[str, ...]:
    """CLIP's 80 templates for ImageNet, with `{}` for the class name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)

"""Floor 1: networks of one modality each. Own small ones (vit, resnet, text_transformer) and adapters to three libraries.

Every encoder stands beside its config, whose `build()` makes it, loads `weights` and freezes what is to stay as it is.
"""

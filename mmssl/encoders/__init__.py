"""Floor 1: encoders, one network for one modality: our own (vit, resnet, text_transformer, ...) and adapters to three libraries.

Every encoder stands beside its config, whose `build()` makes it, loads `weights` and freezes parameters where `frozen` says so.
"""

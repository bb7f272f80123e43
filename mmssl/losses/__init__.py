"""Floor 1: loss functions, pure functions of tensors: no parameters, no configs.

Each is an equation that can be checked against the loop in its docstring; the tests run those loops. Gathered tensors of other
processes are arguments (`all_*`, with the `offset` of this process' rows). Means, sums and statistics of the global batch are
collectives of `core.distributed`, by its convention: a loss returns this process' share.
"""

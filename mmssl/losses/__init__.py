"""Floor 0: loss functions, pure functions of tensors: no parameters, no collectives, no configs.

Gathered tensors of other processes are arguments (`all_*`, with the `offset` of this process' rows), so each function is an
equation that can be checked against the loop in its docstring; the tests run those loops.
"""

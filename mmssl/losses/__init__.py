"""Floor 0: losses as pure functions of tensors. No parameters, no collectives, no configs.

Whatever comes from other processes arrives as an argument (`all_*`, with the `offset` of this process' rows), so that each
function is an equation that can be checked against the loop in its docstring; the tests run those loops.
"""

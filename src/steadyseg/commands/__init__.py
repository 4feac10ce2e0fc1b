"""The commands, one file each: a function's parameters are the options, its docstring is the help.

Heavy modules are imported inside the function that needs them, so that help is instant.
"""

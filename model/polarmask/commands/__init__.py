"""The commands of the command line, one module each: `HELP`, `EXAMPLE`, `add_arguments`, `run`.

Modules import what they compute with inside `run`, so that `--help` does not wait for torch.
"""

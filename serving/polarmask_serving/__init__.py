"""The model behind HTTP: wire format, TorchServe archive, local server.

Everything but `polarmask_handler` knows nothing of TorchServe's Python side. This file is part of
every archive, so it imports nothing.
"""

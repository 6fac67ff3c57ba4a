"""Ways to run one network: as trained, folded, in half precision, exported, or in 8 bits.

interface    what an engine is, which ones exist, and their tolerances
ranking      measured times and answers of one model's engines; read without torch
torch_engines  exported_engines    the engines
export       the program that exported engines run
quantize     the same in 8-bit integers
load         the fastest admitted engine of a model folder, or a safe one
"""

"""Ways to run one network: as trained, folded, in half precision, exported, or in 8 bits.

interface    what an engine is, which ones there are, how far they may be off
ranking      measured times and answers of one model's engines; read without torch
torch_engines  exported_engines    the engines
export       the program that exported engines run
quantize     the same in 8-bit integers
load         the engine that a model folder asks for, or one that works in any case
"""

"""(probes, batches, classes, ranks) -> numbers, the same on every rank. The same code in the loop and on a finished run.

`batches` is a rank's share: every rank gets as many, and calls the probes as often, as any other (a sharded model
needs all ranks for a forward pass), masked slots included.
"""

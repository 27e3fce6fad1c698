"""(probes, batches, classes) -> numbers. The same code in the loop and on a finished run."""

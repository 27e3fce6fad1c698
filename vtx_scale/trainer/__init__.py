"""The loop and what it calls.

Reading order: loop, init, optim, precision, leave, control, sources, output, events,
goodput, stragglers, log.
"""

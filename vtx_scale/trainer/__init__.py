"""The loop and what it calls. Reading order: loop, init, optim, precision, control, output, log."""

"""From tars to batches.

Reading order: errors, storage, tar, index, order, read, members, decode, augment, text, batch, loader, wds, tools.
"""

"""From tars to batches. Reading order: storage, tar, index, order, read, decode, augment, text, batch, loader, wds, tools."""

"""What is learned from a batch, a file each.

Begin with `base`, of which `contract` sees that it is kept; `ranks` is all an objective sees of the
others.
"""

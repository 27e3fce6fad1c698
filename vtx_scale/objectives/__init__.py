"""What is learned from a batch, a file each.

Begin with `base`; `ranks` is all an objective sees of the others.
"""

"""Files for schedulers: what a person hands to Slurm or to Kubernetes.

`slurm` writes a batch script, `kuberay` the objects of a RayJob, and `fields` is the table of what
these objects may hold. Nothing of the environment is written into any of them.
"""

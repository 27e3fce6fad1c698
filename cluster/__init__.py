"""Runs on a cluster. Nothing here knows what is learned; Ray is imported in this package alone.

Reading order: `job` is what a launcher and a cluster say to each other; `policy` when a run that
keeps failing is given up; `ray_settings` what Ray must find before it is imported; `ray_train` runs
a worker on every rank under Ray Train, and is the one file with the names of Ray that are not
stable API; `guard` ends what Ray leaves behind. `storage` is buckets, and knows no Ray.
"""

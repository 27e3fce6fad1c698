"""Runs on a cluster. Nothing here knows what is learned; Ray is imported in this package alone.

Reading order: `job` is what a launcher and a cluster say to each other; `policy` which ranks run
where; `keeper` keeps a machine's ranks, in a process that Ray has started there; `ray_settings`
what Ray must find before it is imported; `ray_nodes` the machines of a cluster and the actors on
them; `ray_private` the names of Ray that are not stable API; `guard` ends what Ray leaves behind.
`ray_tasks` does the work of `vtx data` there. `jobs` is Ray's Jobs API, `token` what it asks for,
`trial` whether a cluster lets us in; `manifests` what schedulers read. `storage` is buckets, and
knows no Ray.
"""

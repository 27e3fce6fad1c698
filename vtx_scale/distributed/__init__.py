"""Ranks and shards: what stands under everything that runs on several processes.

Reading order: ranks, sharding, phases, failpoint.
"""

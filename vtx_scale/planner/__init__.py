"""Arithmetic on specs: what a model holds and costs.

Begin with `count`; `stored` has the published models' counts at hand.
"""

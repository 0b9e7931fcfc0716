"""fal on loopback: the queue API, signed webhooks and a CDN, rendering real video without a model.

It stands for the outside world in the demo and in the tests, so it shares no code with the
worker or the receiver: a mistake made in both places would hide itself.
"""

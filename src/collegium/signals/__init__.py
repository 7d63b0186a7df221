"""The types that cross rooms: batches and positions, what teachers say about them, and (total, count) pairs.

May import `base`. Begin with `contracts`: `Batch`, `Positions` and the `Teacher` protocol.
"""

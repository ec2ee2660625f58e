"""
A batching dispatcher between producers and consumers that run at different speeds.
"""

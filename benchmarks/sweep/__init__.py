"""
``python -m benchmarks sweep``: finds the options that a SendFn runs best with.

What decides is pure: `cells` (the grid), `search` (which cells to try), `goals` and `figures` (what a
turn is worth), `record` (what was measured), `advice` (what to recommend, and why), `show` (tables, text, JSON).
What acts: `sinks` (loads a SendFn, makes a scripted one), `trial` (one turn), `course` (from warm-up to the
comparison with the defaults), `plot`, `progress`, `command`.
"""

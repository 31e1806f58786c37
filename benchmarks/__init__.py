"""Side-by-side measurements of one workspace reached in several ways.

``python -m benchmarks`` mounts the same directory through every peer, runs each workload on all of them in
turn, several rounds, and compares medians. Absolute figures depend on the machine; ratios of one run do not.
"""

"""How good, how fast and how robust the algorithms are. Every script also runs as a module.

    python benchmarks/sweep.py cpu --dry-run
    python -m benchmarks.sweep cpu --dry-run

Both find this package through the editable install, `pip install -e .`, which puts the repository's root on
Python's path. Modules import each other by their whole name, `from benchmarks.report import …`: a script that
runs as a file has its own folder first on that path, so no module here has the name of another package.
"""

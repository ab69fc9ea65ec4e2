"""The arena: measures this service beside other embedding servers and libraries, on the same machine and texts.

    make bench                      or: python -m benchmarks.arena [--quick] [--model demo base long] ...
    python -m benchmarks.arena.report benchmarks/results/arena.json

A *system* is one way to get vectors: this service through one of its clients, or a peer (systems.py). A *workload*
is how texts arrive: in bulk, or from many clients (workloads.py). In each round, the arena starts one system after
the other, warms it up, measures its workloads, and stops it. So nothing else computes meanwhile. Every other round
goes through the systems in the opposite order. A system that cannot run is in the results with the reason.

    __main__.py       the flags
    tournament.py     rounds: which system runs when, and what is recorded
    systems.py        the systems: their arguments, and why some are left out
    kinds.py          the kinds of systems, and how each starts
    in_process.py     a library in a process of its own; the programs in drivers/ answer there
    served.py         a server, and the ways its clients call it
    callers.py        what a client does for one request: ZeroMQ, or HTTP in one of its formats
    http_connection.py  an HTTP connection that costs little
    workloads.py      the workloads
    load.py           closed loop, open loop
    arrivals.py       Poisson arrivals
    texts.py          the texts
    models.py         model folders, and their exports for the peers; random_models.py makes the random ones
    environments.py   the virtual environments of the peers
    machine.py        the machine, versions and commit
    results.py        the records of the JSON file
    report.py         from the JSON file: Markdown, plots
    targets.py        the table of targets
    plots.py          SVG
"""

"""Benchmarks. Start one in the root of the repository with `python -m benchmarks.NAME`.

    arena         this service and its peers: bulk, many clients, one sentence, and more (`make bench`)
    encoder       the encoder and sentence-transformers in one process, on a CPU or a GPU, with the machine's limit
    roofline      the encoder by shapes of batches, with a profile
    gateway       the HTTP gateway with a worker that returns fixed vectors
    http_servers  HTTP servers for Python, with the gateway's application
    spinning      how long idle threads may spin

The benchmarks share common.py and device.py. They use the running server, the small models and the
sentences of tests/support.
"""

"""A model's packed forward pass, compiled ahead of time for this machine's processor.

    graph.py            what is compiled: token ids -> hidden states, with attention as one operator
    fusion.py           replaces other parts of the graph by operators, if the processor is made for their products
    packed_weights.py   linear layers as these operators store them
    quantization.py     chooses which linear layers compute in 8-bit integers (-dtype int8)
    operators.py        the operators' signatures; compiles and loads their code, which is in native/
    build.py            a process of its own, which compiles a graph, checks it and puts it into the cache
    cache.py            the folder that keeps compiled graphs, under a key of everything that they depend on
    forward.py          loads a compiled graph and runs it
    threads.py          chooses between all threads and one, for each pass
    target.py           finds a graph in the cache, or lets build.py make it

The encoder works without all this: a graph that cannot be compiled only means that passes are slower.
"""

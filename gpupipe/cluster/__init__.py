"""Engines on many machines: the segments of renders, drawn by whoever is free, on the nodes of a Ray cluster; and
servers on them, behind one router.

    render  a render, and many jobs, on a cluster           run       their engines, and what becomes of each job
    board   which engine takes which segment next, what     ledger    a job as the board has it
            is tried again, and begun a second time         job       one job: what it needs, what is there of it
    crew    engines, and what each has been told            inputs    the files that it needs
    drawing what engines do with what they take             transfer  files to a node, and segments from it
    joining nodes that join while a run goes on             store     files that a node was sent, by what they hold
    shares  which engines there are to be                   node      an engine on a node, and what it can be asked
    places  those that a run has had, and others            begun     a job as a node has it
    fleet   the cluster, and its nodes                      work      what is sent: plain data
    starting nodes that this process starts
    remote  engines as Ray's actors (`actor`),              facts     what the nodes must have in common
            and what is lost                                stats     what each node did

    serving   a router whose replicas are on nodes          berths    which share of which node each has
    replicas  servers, held by actors (`server`)

A segment is drawn like one of `gpupipe render --segments`, and put with the parts of its output like those: so the
joined file is the same, byte for byte, whoever drew which. May touch files, and Ray in `fleet`, `remote` and
`replicas`; how a frame is drawn, nothing here knows. The extra `gpupipe[ray]` brings Ray. This file imports nothing.
"""
